"""EVA's video fine-tuning in minutes on two CPU cores: every component of the leaf, made small.

Command:    python tools/make_demo.py kinetics --out data/demo/kinetics
            python tools/train.py configs/demo/kinetics.py
Data:       made by `tools/make_demo.py kinetics`: six motions, 240 training and 40 validation clips
            each, in the layout of Kinetics. No single frame tells the class.
Measured:   100.0 top-1 (one view), 1.5 minutes of CPU time in one thread.
Changed:    sizes, rates, drop path, length; two frames per token instead of one, which learns
            slowly from random weights (41.7 top-1 in the same number of updates); no flips, which
            turn one class into another; no jitter of colours. No type of component.

Beside it, configs/demo/kinetics_per_frame.py is the same model on single frames.
"""

_base_ = '../kinetics/eva_g_k400.py'

image_size, num_frames, num_classes = 48, 8, 6
model = dict(
    backbone=dict(
        size='tiny',
        num_frames=num_frames,
        tubelet_size=2,
        img_size=image_size,
        patch_size=16,
        embed_dim=96,
        depth=4,
        num_heads=4,
        mlp_dim=384,
        drop_path_rate=0.0,
        # Of a width of 96, where 0.02 learns slowly.
        init_std=0.1,
        activation_checkpointing=False,
    ),
    cls_head=dict(
        num_classes=num_classes,
        in_channels=96,
        class_rows=None,
        # Random weights of this size learn slowly behind a head of nearly zero.
        init_scale=1.0,
    ),
)

data_root = 'data/demo/kinetics/'
train_pipeline = _base_.train_pipeline
train_pipeline[1].num_frames = num_frames
train_pipeline[3].scale = (-1, 56)
train_pipeline[4].update(input_size=image_size, scales=(1, 0.875))
train_pipeline[5].scale = (image_size, image_size)
train_pipeline[6].flip_ratio = 0.0
train_pipeline[7].prob = 0.0
val_pipeline = _base_.val_pipeline
val_pipeline[1].num_frames = num_frames
val_pipeline[3].scale = (-1, image_size)
val_pipeline[4].crop_size = image_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].num_frames = num_frames
test_pipeline[3].scale = (-1, image_size)
test_pipeline[4].crop_size = image_size
train_dataloader = dict(
    batch_size=24,
    num_workers=1,
    dataset=dict(
        ann_file=data_root + 'train.txt',
        data_prefix=dict(video=data_root),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=24,
    num_workers=1,
    dataset=dict(
        ann_file=data_root + 'val.txt', data_prefix=dict(video=data_root), pipeline=val_pipeline
    ),
)
test_dataloader = dict(
    num_workers=1,
    dataset=dict(
        ann_file=data_root + 'val.txt', data_prefix=dict(video=data_root), pipeline=test_pipeline
    ),
)

epoch_length = 60
epochs, warm_up = 8, 1
total, rise = epochs * epoch_length, warm_up * epoch_length
train_cfg = dict(max_iters=total, val_interval=2 * epoch_length)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0), optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, end=rise),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=rise,
        end=total,
        T_max=total - rise,
        eta_min=0,
    ),
]
auto_scale_lr = dict(base_batch_size=24)
default_hooks = dict(checkpoint=dict(interval=2 * epoch_length))
load_from = None
