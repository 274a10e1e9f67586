"""EVA's pretraining in minutes on two CPU cores: every component of the leaf, made small.

Command:    python tools/make_demo.py captions --out data/demo/captions
            python tools/train.py configs/demo/clip_teacher.py
            python tools/train.py configs/demo/pretrain.py
Data:       the images of the captioned scenes, 4,000 + 400 of 96 px; their sentences are left
            aside.
Measured:   validation loss -0.867, the mean feature's -0.755; 3.6 minutes of CPU time in all.
Changed:    sizes, teacher, masks' size, rate, drop path, counts. No type of component.

Validation prints `loss` beside `mean_feature_loss`, that of predicting the same for every patch.
"""

_base_ = '../pretrain/eva_g_merged30m.py'

img_size = 64
grid_size = 8
teacher = dict(
    model=dict(
        _delete_=True,  # the leaf's is a name
        embed_dim=64,
        vision_cfg=dict(image_size=64, patch_size=8, width=128, layers=4, head_width=32),
        text_cfg=dict(context_length=48, width=64, heads=2, layers=2),
    ),
    weights='work_dirs/demo/clip_teacher/iter_600.pth',
)
model = dict(
    size='tiny',
    img_size=img_size,
    patch_size=8,
    embed_dim=128,
    depth=4,
    num_heads=4,
    mlp_dim=512,
    drop_path_rate=0.0,
    teacher=teacher,
)

data_root = 'data/demo/captions/'
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    pin_memory=False,
    dataset=dict(
        data_root=data_root + 'train/',
        pipeline=[
            dict(type='TwoViewCrop', size=img_size, teacher_size=img_size),
            # 26 of 64 patches at most: the leaf's 41 %.
            dict(type='BlockMask', grid_size=grid_size, num_masked=26, min_area=4),
            dict(type='PackImage'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=1,
    pin_memory=False,
    dataset=dict(
        data_root=data_root + 'val/',
        pipeline=[
            dict(type='ResizeCenterCrop', size=img_size, resize=img_size, teacher_size=img_size),
            dict(type='AlternatingMask', grid_size=grid_size),
            dict(type='PackImage'),
        ],
    ),
)
test_dataloader = val_dataloader

max_iters = 400
warmup = 40
train_cfg = dict(max_iters=max_iters, val_interval=100)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, begin=0, end=warmup),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=False,
        begin=warmup,
        end=max_iters,
        T_max=max_iters - warmup,
    ),
]
auto_scale_lr = dict(base_batch_size=64)
default_hooks = dict(checkpoint=dict(interval=max_iters, max_keep_ckpts=1))
