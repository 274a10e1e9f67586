"""COCO-Stuff-164K, the variant with relative positions, layer scale and 9 decoder layers, 896 px.

Command:    tools/dist_train.sh configs/coco_stuff/eva_mask2former_relpos.py 8   (on 2 nodes)
            tools/test.py configs/coco_stuff/eva_mask2former_relpos.py \
                eva://eva_sem_seg_coco_stuff_relpos
Hardware:   16 GPUs with two images each, as published; hours not stated.
Published:  53.2 mIoU on val (weights `eva_sem_seg_coco_stuff_relpos`, of iteration 74,000, the
            best), single scale; 73.93 aAcc, 66.01 mAcc.
Source:     EVA, arXiv 2211.07636, section 3.3; EVA-01/seg/README.md and logs/sem_seg,
            https://github.com/baaivision/EVA.
Proved:     as `eva_mask2former.py`; attention with tables equals its explicit form
            (tests/segmentation). The mIoU was not measured here.
"""

_base_ = './eva_mask2former.py'

model = dict(
    backbone=dict(relative_position_bias=True, layer_scale=1.0),
    decode_head=dict(transformer_decoder=dict(num_layers=9)),
)
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=80000, val_interval=1000)
optim_wrapper = dict(optimizer=dict(lr=1e-5))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=80001),
]
default_hooks = dict(checkpoint=dict(interval=1000))
