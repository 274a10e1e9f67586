"""Pilot study, feature distillation: ViT-B/16, ImageNet-1K, 300 epochs.

Command:    tools/dist_train.sh configs/pretrain/pilot_distill_short.py 8   (on each of 4 nodes)
Hardware:   not stated; 32 GPUs with 64 images each make the batch of 2048.
Published:  no weights.
Source:     EVA, arXiv 2211.07636, section 2.1: three kinds of target at shorter and longer
            schedules. No code, command or log of it is published; teacher, masks, batch and rates
            here are ours. The numbers of epochs have not been checked against the paper's table.
Proved:     model, target and gradients are those of the leaf `eva_g_merged30m` (tests/parity);
            rates equal closed forms (tests/pretraining/test_schedules.py). Nothing was measured.

No mask, and the loss over all patches: everything else is that of `pilot_regress_short`.
"""

_base_ = [
    '../_base_/models/eva_b_mim.py',
    '../_base_/datasets/in1k_mim.py',
    '../_base_/schedules/eva_b_mim.py',
    '../_base_/mmengine_runtime.py',
]
custom_imports = dict(imports=['eva_mm.pretraining'], allow_failed_imports=False)

# Nothing is hidden, so the data need no masks.
model = dict(predict='all')
train_pipeline = [
    dict(type='TwoViewCrop', size=224, teacher_size=224),
    dict(type='PackImage'),
]
val_pipeline = [
    dict(type='ResizeCenterCrop', size=224, resize=256, teacher_size=224),
    dict(type='PackImage'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=187500)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, begin=0, end=6250),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=False,
        begin=6250,
        end=187500,
        T_max=181250,
    ),
]
default_hooks = dict(checkpoint=dict(interval=6250))
