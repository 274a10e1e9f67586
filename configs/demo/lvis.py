"""The LVIS detector in minutes on two CPU cores: every component of the leaf, made small.

Command:    make demo
Data:       made by `tools/make_demo.py lvis`: 200 + 60 images of 256 px with 24 categories in LVIS
            v1 format.
Changed:    sizes, learning rate, drop path, jitter range, counts. No type of component.
"""

_base_ = '../lvis/eva_cascade.py'

image_size = (256, 256)
num_classes = 24
channels = 48
extractor = dict(out_channels=channels)
model = dict(
    data_preprocessor=dict(pad_size=image_size),
    backbone=dict(
        size='tiny',
        img_size=256,
        pretrain_img_size=256,
        embed_dim=128,
        depth=6,
        num_heads=4,
        mlp_dim=512,
        window_size=8,
        global_block_indexes=[2, 5],
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
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=256,
            num_classes=num_classes,
            loss_cls=dict(num_classes=num_classes, num_sampled_classes=16),
        ),
        mask_head=dict(in_channels=channels, conv_out_channels=channels, num_classes=num_classes),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=150),
        # A list is replaced as a whole: the leaf's, with 48 boxes per image in place of 512.
        rcnn=[
            dict(
                assigner=dict(
                    type='EVAMaxIoUAssigner',
                    pos_iou_thr=thr,
                    neg_iou_thr=thr,
                    match_low_quality=False,
                ),
                sampler=sampler,
                mask_size=28,
                pos_weight=-1,
            )
            for thr, sampler in (
                (
                    0.5,
                    dict(type='RandomSampler', num=48, pos_fraction=0.25, add_gt_as_proposals=True),
                ),
                (0.6, dict(type='PseudoSampler')),
                (0.7, dict(type='PseudoSampler')),
            )
        ],
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=150), rcnn=dict(max_per_img=100)),
)

data_root = 'data/demo/lvis/'
train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='LargeScaleJitter', scale=image_size, ratio_range=(0.8, 1.25)),
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
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    sampler=dict(repeat_thr=0.2),
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(data_root=data_root, pipeline=test_pipeline),
)
test_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(data_root=data_root, pipeline=test_pipeline),
)
val_evaluator = dict(ann_file=data_root + 'annotations/lvis_v1_val.json')
test_evaluator = dict(ann_file=data_root + 'annotations/lvis_v1_val.json')

max_iters = 1200
train_cfg = dict(max_iters=max_iters, val_interval=400)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.05), paramwise_cfg=dict(layer_decay=1.0)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=51),
    dict(type='MultiStepLR', by_epoch=False, milestones=[950, 1120], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(checkpoint=dict(interval=400, max_keep_ckpts=1))
# Nothing to load: random weights learn these shapes in minutes.
load_from = None
