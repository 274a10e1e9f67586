"""A tiny CLIP for the demo's pretraining to learn from: contrastive training on captioned scenes.

Command:    python tools/make_demo.py captions --out data/demo/captions
            python tools/train.py configs/demo/clip_teacher.py
Data:       4,000 + 400 generated images of 96 px with a sentence each.
Measured:   an image's own sentence among 400 found in 56 %; 4.6 minutes of CPU time in all.
Model:      open_clip's CLIP of 4.1 M parameters, 0.83 M of them the image tower's: 64 px, patches
            of 8 px. Its checkpoints are open_clip's; CLIPTeacher reads them.
"""

_base_ = ['../_base_/schedules/eva_mim.py', '../_base_/mmengine_runtime.py']
custom_imports = dict(imports=['eva_mm.pretraining'], allow_failed_imports=False)

context_length = 48
model = dict(
    type='ContrastiveCLIP',
    data_preprocessor=dict(type='PretrainDataPreprocessor'),
    embed_dim=64,
    vision_cfg=dict(image_size=64, patch_size=8, width=128, layers=4, head_width=32),
    text_cfg=dict(context_length=context_length, width=64, heads=2, layers=2),
)

dataset = dict(type='CaptionedImages', data_root='data/demo/captions/')
tokenize = dict(type='TokenizeCaption', context_length=context_length)
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='ExactInfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        **dataset,
        ann_file='train.csv',
        pipeline=[
            # Hardly cropped: what the sentence names has to stay on the picture.
            dict(type='TwoViewCrop', size=64, scale=(0.9, 1.0)),
            dict(type='PackImage'),
            tokenize,
        ],
    ),
)
val_dataloader = dict(
    batch_size=100,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        **dataset,
        ann_file='val.csv',
        test_mode=True,
        pipeline=[
            dict(type='ResizeCenterCrop', size=64, resize=64),
            dict(type='PackImage'),
            tokenize,
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='RetrievalMetric')
test_evaluator = val_evaluator

max_iters = 600
warmup = 60
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=200)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.1),
    paramwise_cfg=dict(no_decay=dict(names=['positional_embedding'], _delete_=True, one_dim=True)),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
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
