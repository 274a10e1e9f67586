"""ImageNet-21K intermediate fine-tuning of EVA-g, 224 px.

Command:    tools/dist_train.sh configs/imagenet/eva_g_in21k_224.py 8   (on each of 8 nodes)
Hardware:   64 GPUs with 64 images each, as published; hours not stated.
Published:  weights `eva_21k_224px`; no accuracy stated, final training loss 3.9975 in the log.
Source:     EVA, arXiv 2211.07636; EVA-01/eva/README.md, EVA-01/eva/run_class_finetuning.py and
            EVA-01/logs/cls, https://github.com/baaivision/EVA.
Proved:     logits, loss (of unmixed images) and gradients equal the authors' code on reduced sizes
            (tests/parity); mixing and the loss of its targets equal timm's
            (tests/classification/test_preprocessor.py, test_classifier.py);
            parameter count, groups and the rates of every epoch equal the published log
            (tests/classification/test_schedules.py). The accuracy was not measured here.
"""

_base_ = [
    '../_base_/models/eva_g_classifier.py',
    '../_base_/datasets/imagenet_21k.py',
    '../_base_/schedules/eva_cls.py',
    '../_base_/mmengine_runtime.py',
]
custom_imports = dict(imports=['eva_mm.classification'], allow_failed_imports=False)

image_size = 224
# Every batch is CutMix; the smoothing goes into its soft targets.
model = dict(
    img_size=image_size,
    num_classes=21841,
    label_smoothing=0.1,
    allowed_missing=['head.*', 'fc_norm.*'],
    data_preprocessor=dict(
        mixup=dict(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=21841)
    ),
)

train_pipeline = [
    dict(
        type='TimmTransform',
        size=image_size,
        is_training=True,
        scale=(0.5, 1.0),
        auto_augment='rand-m9-mstd0.5-inc1',
    ),
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))

epochs, warm_up = 60, 15
# 14.197 M images at 4096, without the rest.
epoch_length = 3466
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=epochs * epoch_length, val_interval=epoch_length
)
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay=0.85),
    optimizer=dict(lr=1e-4, betas=(0.9, 0.98), eps=1e-6),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, end=warm_up * epoch_length),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warm_up * epoch_length,
        end=epochs * epoch_length,
        T_max=(epochs - warm_up) * epoch_length,
        eta_min_ratio=0.01,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=4096)
default_hooks = dict(
    class_count=dict(type='ClassCountHook'),
    checkpoint=dict(interval=epoch_length, max_keep_ckpts=1),
)
load_from = 'eva://eva_psz14'
