"""ADE20K, the variant with relative positions, layer scale and 9 decoder layers, 896 px.

Command:    tools/dist_train.sh configs/ade20k/eva_mask2former_relpos.py 8   (on each of 2 nodes)
            tools/test.py configs/ade20k/eva_mask2former_relpos.py \
                eva://eva_sem_seg_ade_relpos [--tta]
Hardware:   16 GPUs with two images each, as published; hours not stated.
Published:  61.5 mIoU on val (weights `eva_sem_seg_ade_relpos`, of iteration 36,000, the best),
            single scale; 87.2 aAcc, 76.12 mAcc. 62.3 with `--tta`: seven scales, each with its
            mirror image; 87.54 aAcc, 76.06 mAcc.
Source:     EVA, arXiv 2211.07636, section 3.3; EVA-01/seg/README.md, configs/ade20k and
            logs/sem_seg, https://github.com/baaivision/EVA.
Proved:     as `../coco_stuff/eva_mask2former_relpos.py`. Views and their mean are those of
            a direct computation (tests/segmentation/test_tta.py). The mIoU was not measured here.

The training log starts from an average of the COCO-Stuff run's weights, which is not published;
here its best weights, which the published config names, are the start.
"""

_base_ = './eva_mask2former.py'

model = dict(
    backbone=dict(relative_position_bias=True, layer_scale=1.0),
    decode_head=dict(transformer_decoder=dict(num_layers=9)),
)
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=40000, val_interval=1000)
optim_wrapper = dict(optimizer=dict(lr=1e-5), paramwise_cfg=dict(layer_decay=0.9))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=40001),
]
auto_scale_lr = dict(base_batch_size=32)
default_hooks = dict(checkpoint=dict(interval=1000))
load_from = 'eva://eva_sem_seg_coco_stuff_relpos'
