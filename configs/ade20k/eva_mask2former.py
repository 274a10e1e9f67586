"""ADE20K with EVA-g in a ViT-Adapter under Mask2Former of 8 decoder layers, 896 px.

Command:    tools/dist_train.sh configs/ade20k/eva_mask2former.py 8   (on each of 8 nodes)
            tools/test.py configs/ade20k/eva_mask2former.py eva://eva_sem_seg_ade [--tta]
Hardware:   64 GPUs with one image each, as published; hours not stated.
Published:  61.5 mIoU on val (weights `eva_sem_seg_ade`), single scale; 87.15 aAcc, 75.75 mAcc.
            62.3 with `--tta`: seven scales, each with its mirror image; 87.35 aAcc, 76.14 mAcc.
Source:     EVA, arXiv 2211.07636, section 3.3; EVA-01/seg/README.md, configs/ade20k and
            logs/sem_seg, https://github.com/baaivision/EVA.
Proved:     as `../coco_stuff/eva_mask2former.py`. Views and their mean are those of
            a direct computation (tests/segmentation/test_tta.py). The mIoU was not measured here.

The training log evaluates and saves every 2,000 iterations; the published config says 1,000.
"""

_base_ = [
    '../_base_/models/eva_g_mask2former.py',
    '../_base_/datasets/ade20k_896.py',
    '../_base_/schedules/eva_g_seg.py',
    '../_base_/mmseg_runtime.py',
]
custom_imports = dict(imports=['eva_mm.segmentation'], allow_failed_imports=False)

num_classes = 150
model = dict(
    # The weights of `load_from` score other classes; see there.
    allowed_missing=['decode_head.cls_embed.*'],
    backbone=dict(init_cfg=None),
    decode_head=dict(
        num_classes=num_classes, loss_cls=dict(class_weight=[1.0] * num_classes + [0.1])
    ),
)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=20000, val_interval=2000)
optim_wrapper = dict(optimizer=dict(lr=2.5e-5))
param_scheduler = [
    # The warm-up is multiplied onto the decay, which runs from the first iteration.
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=501),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=20001),
]
auto_scale_lr = dict(base_batch_size=64)
# Segmentor trained on COCO-Stuff: class scores alone start anew; queries are kept, no class is
# mapped to another.
load_from = 'eva://eva_sem_seg_coco_stuff'
