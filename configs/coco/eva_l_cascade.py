"""COCO with EVA-L under Cascade Mask R-CNN, 1024 px: for one small GPU.

Command:    python tools/train.py configs/coco/eva_l_cascade.py --accumulate 16
Hardware:   one GPU, one image at a time; with more GPUs as many times less `--accumulate`.
Published:  nothing, this run is ours. The authors publish EVA-L's weights and no detector of it.
Source:     heads, losses and data of eva_cascade.py; backbone settings of ViTDet-L
            (arXiv 2203.16527) where they depend on the size.
Proved:     it builds and steps, and takes weights of patches of 14 px (tests/test_configs.py). The
            AP was not measured here.

Ours, and why: size, batch, rate and schedule as told in eva_b_cascade.py, and
    global blocks 6, 12, 18, 24      ViTDet-L's
    layer decay 0.8, drop path 0.4   ViTDet-L's
    start from `eva_l_psz14`         EVA-L's only weights without labels; patches of 14 px are
                                     resized to 16 while they load
    frozen patch embedding           as in the published detectors
"""

_base_ = './eva_b_cascade.py'

model = dict(
    backbone=dict(
        size='large',
        global_block_indexes=[5, 11, 17, 23],
        drop_path_rate=0.4,
        freeze_patch_embed=True,
        init_cfg=dict(type='Pretrained', checkpoint='eva://eva_l_psz14'),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.8))
