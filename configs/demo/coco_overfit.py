"""A handful of photos learnt by heart: does the whole path fit real pictures and polygons?

Command:    python tools/train.py configs/demo/coco_overfit.py --cfg-options \
                train_dataloader.dataset.data_root=DIR/ val_dataloader.dataset.data_root=DIR/ \
                val_evaluator.ann_file=DIR/instances.json
Data:       a folder in COCO format with `instances.json` (one class, person) and `images/`.
Changed:    sizes, learning rate, drop path, jitter range, counts; trained and tested on the same
            images. No type of component.
Measured:   four COCO photos with 14 persons, two CPU cores: mask AP 60.7 and 62.5, box AP 94.9 and
            93.4 in two runs; 6 minutes.
"""

_base_ = '../coco/eva_cascade.py'

image_size = (320, 320)
channels = 32
extractor = dict(out_channels=channels)
model = dict(
    data_preprocessor=dict(pad_size=image_size),
    backbone=dict(
        size='tiny',
        img_size=320,
        pretrain_img_size=320,
        embed_dim=128,
        depth=4,
        num_heads=4,
        mlp_dim=512,
        window_size=8,
        global_block_indexes=[1, 3],
        freeze_patch_embed=False,
        drop_path_rate=0.0,
        activation_checkpointing=False,
    ),
    neck=dict(in_channels=128, out_channels=channels),
    rpn_head=dict(in_channels=channels, feat_channels=channels),
    roi_head=dict(
        bbox_roi_extractor=extractor,
        mask_roi_extractor=extractor,
        bbox_head=dict(
            in_channels=channels, conv_out_channels=channels, fc_out_channels=128, num_classes=1
        ),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_classes=1),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=48),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=48)),
)

data_root = 'data/coco4/'
train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='LargeScaleJitter', scale=image_size, ratio_range=(0.95, 1.05)),
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
photos = dict(data_root=data_root, ann_file='instances.json', data_prefix=dict(img='images/'))
train_dataloader = dict(
    batch_size=2, num_workers=1, dataset=dict(pipeline=train_pipeline, **photos)
)
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline, **photos))
test_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline, **photos))
val_evaluator = dict(ann_file=data_root + 'instances.json')
test_evaluator = dict(ann_file=data_root + 'instances.json')

train_cfg = dict(max_iters=900, val_interval=300)
optim_wrapper = dict(optimizer=dict(lr=1e-3, weight_decay=0.0), paramwise_cfg=dict(layer_decay=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=21),
    dict(type='MultiStepLR', by_epoch=False, milestones=[650, 820], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=2)
default_hooks = dict(checkpoint=dict(interval=900, max_keep_ckpts=1))
load_from = None
