"""ImageNet fine-tuning in minutes on two CPU cores: every component of the leaf, made small.

Command:    python tools/make_demo.py imagenet --out data/demo/imagenet
            python tools/train.py configs/demo/imagenet.py
Data:       made by `tools/make_demo.py imagenet`: 24 classes of drawn objects, 50 training and 20
            validation images of 96 px each, in ImageNet's folders.
Measured:   97.5 top-1 (moving average; 97.7 without), 2.2 minutes of CPU time in one thread.
Changed:    sizes, rates, drop path, augmentation, length, decay of the average. No type of
            component.
"""

_base_ = '../imagenet/eva_g_in1k_336.py'

image_size = 64
num_classes = 24
model = dict(
    size='tiny',
    img_size=image_size,
    patch_size=8,
    embed_dim=128,
    depth=4,
    num_heads=4,
    mlp_dim=512,
    num_classes=num_classes,
    drop_path_rate=0.0,
    label_smoothing=0.1,
    stop_grad_patch_embed=False,
    # Random weights of this size learn slowly behind a head of nearly zero.
    head_init_scale=1.0,
    activation_checkpointing=False,
    allowed_missing=[],
)

data_root = 'data/demo/imagenet/'
# RandAugment would change the colours, by which these classes differ.
train_pipeline = [
    dict(type='TimmTransform', size=image_size, is_training=True, scale=(0.6, 1.0), color_jitter=0),
]
test_pipeline = [dict(type='TimmTransform', size=image_size, crop_pct=1.0)]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    dataset=dict(data_root=data_root + 'train', classes=None, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=60,
    num_workers=1,
    dataset=dict(data_root=data_root + 'val', classes=None, pipeline=test_pipeline),
)
test_dataloader = val_dataloader

epoch_length = 37
epochs, warm_up = 16, 2
train_cfg = dict(max_iters=epochs * epoch_length, val_interval=4 * epoch_length)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0), optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, end=warm_up * epoch_length),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warm_up * epoch_length,
        end=epochs * epoch_length,
        T_max=(epochs - warm_up) * epoch_length,
        eta_min_ratio=0,
    ),
]
auto_scale_lr = dict(base_batch_size=32)
# As long a memory, relative to the run, as the leaf's.
custom_hooks = [dict(type='EVAEMAHook', decay=0.98)]
default_hooks = dict(checkpoint=dict(interval=4 * epoch_length))
load_from = None
