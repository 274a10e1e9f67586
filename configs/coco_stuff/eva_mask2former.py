"""COCO-Stuff-164K with EVA-g in a ViT-Adapter under Mask2Former of 8 decoder layers, 896 px.

Command:    tools/dist_train.sh configs/coco_stuff/eva_mask2former.py 8   (on each of 4 nodes)
            tools/test.py configs/coco_stuff/eva_mask2former.py eva://eva_sem_seg_coco_stuff
Hardware:   32 GPUs with one image each, as published; hours not stated.
Published:  53.4 mIoU on val (weights `eva_sem_seg_coco_stuff`, the last ones), single scale;
            74.08 aAcc, 66.09 mAcc.
Source:     EVA, arXiv 2211.07636, section 3.3; EVA-01/seg/README.md, configs/coco_stuff164k and
            logs/sem_seg, https://github.com/baaivision/EVA.
Proved:     the backbone's maps and gradients equal the authors' code on reduced sizes
            (tests/parity); rates, groups and the rate of every iteration equal closed forms
            (tests/segmentation/test_schedules.py). The mIoU was not measured here.

The training log evaluates every 8,000 iterations and saves every 2,000; the published config says
1,000 for both.
"""

_base_ = [
    '../_base_/models/eva_g_mask2former.py',
    '../_base_/datasets/coco_stuff164k_896.py',
    '../_base_/schedules/eva_g_seg.py',
    '../_base_/mmseg_runtime.py',
]
custom_imports = dict(imports=['eva_mm.segmentation'], allow_failed_imports=False)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=60000, val_interval=8000)
optim_wrapper = dict(optimizer=dict(lr=1.5e-5))
param_scheduler = [
    # The warm-up is multiplied onto the decay, which runs from the first iteration.
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1501),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=60001),
]
