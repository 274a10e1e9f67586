"""COCO with a ViT-B of EVA's kind under Cascade Mask R-CNN, 1024 px: for one small GPU.

Command:    python tools/train.py configs/coco/eva_b_cascade.py --accumulate 16 --cfg-options \
                model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
Hardware:   one GPU, one image at a time; with more GPUs as many times less `--accumulate`.
Published:  nothing, this run is ours. The authors publish no weights of this size: FILE is a
            ViT-B/16 pretrained elsewhere, with the parameter names of eva_mm/vit.py. Without it
            the detector learns from random weights, which takes far longer than this schedule.
Source:     heads, losses and data of eva_cascade.py; backbone settings of ViTDet-B
            (arXiv 2203.16527) where they depend on the size.
Proved:     it builds and steps (tests/test_configs.py). The AP was not measured here.

Ours, and why:
    1024 px, windows of 16 patches   ViTDet's size; 64 patches a side divide into EVA's windows
    global blocks 3, 6, 9, 12        ViTDet-B's
    layer decay 0.7, drop path 0.1   ViTDet-B's
    learning patch embedding         EVA's is frozen; here there may be nothing to keep
    16 images per update             what one GPU accumulates in reasonable time
    rate 5e-5                        ViTDet's 1e-4 at 64 images, by the square root of the
                                     batch, as AdamW takes it
    88,000 iterations                12 epochs; steps at 8/9 and 26/27 of them, as ViTDet's
"""

_base_ = './eva_cascade.py'

image_size = (1024, 1024)
train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='LargeScaleJitter', scale=image_size, ratio_range=(0.1, 2.0)),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(
        type='ResizeShortestEdge',
        scale=image_size[0],
        max_size=image_size[0],
        resize_type='Resize',
        backend='pillow',
    ),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
model = dict(
    allowed_missing=[],
    data_preprocessor=dict(pad_size=image_size),
    backbone=dict(
        size='base',
        img_size=1024,
        global_block_indexes=[2, 5, 8, 11],
        drop_path_rate=0.1,
        freeze_patch_embed=False,
    ),
    neck=dict(in_channels=768),
)

train_cfg = dict(max_iters=88000)
optim_wrapper = dict(optimizer=dict(lr=5e-5), paramwise_cfg=dict(layer_decay=0.7))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=251),
    dict(type='MultiStepLR', by_epoch=False, milestones=[78000, 84500], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=16)
load_from = None
