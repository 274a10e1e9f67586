"""ImageNet-1K fine-tuning of EVA-L after ImageNet-21K, 196 px.

Command:    tools/dist_train.sh configs/imagenet/eva_l_in21k_in1k_196.py 8   (on each of 4 nodes)
Hardware:   ours: 32 GPUs with 16 images each; not stated.
Published:  88.6 top-1 (log: 88.586, moving average of epoch 14 of 20); weights
            `eva_l_psz14_196px_21k_to_1k_ft`.
Source:     EVA, arXiv 2211.07636; EVA-01/logs/cls and EVA-01/eva/README.md,
            https://github.com/baaivision/EVA. Published are weights and logs, no command. From the
            log: epochs, warm-up, rates, layer and weight decay, steps per epoch, that images are
            not mixed, and that there is a moving average. Ours: smoothing 0.2 (the final loss of
            the log, 2.274 at 336 px, lies below what 0.25 admits), drop path 0.2 (MAE's fine-tuning
            of ViT-L); decay of the average, betas, eps, crop scale, RandAugment and, in
            evaluation, crop_pct 1.0 as for EVA-g; mean pooling.
Proved:     the blocks are those of masked image modelling, whose prediction and gradients equal
            the authors' code, pooling and head those of EVA-g, likewise (tests/parity); EVA-L's
            classifier as a whole was not compared. Label smoothing equals timm's
            (tests/classification/test_classifier.py);
            parameter count, groups and the rates of every epoch equal the published log
            (tests/classification/test_schedules.py). The accuracy was not measured here.
"""

_base_ = [
    '../_base_/models/eva_l_classifier.py',
    '../_base_/datasets/imagenet_1k.py',
    '../_base_/schedules/eva_cls.py',
    '../_base_/imagenet_1k_runtime.py',
]
custom_imports = dict(imports=['eva_mm.classification'], allow_failed_imports=False)

image_size = 196
model = dict(
    img_size=image_size,
    label_smoothing=0.2,
    allowed_missing=['head.*'],
)

train_pipeline = [
    dict(
        type='TimmTransform',
        size=image_size,
        is_training=True,
        scale=(0.08, 1.0),
        auto_augment='rand-m9-mstd0.5-inc1',
    ),
]
test_pipeline = [dict(type='TimmTransform', size=image_size, crop_pct=1.0)]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=24, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

epochs, warm_up = 20, 5
# 1,281,167 images at 512, without the rest.
epoch_length = 2502
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=epochs * epoch_length, val_interval=epoch_length
)
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay=0.8),
    optimizer=dict(lr=6e-5),
)
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
auto_scale_lr = dict(enable=False, base_batch_size=512)
default_hooks = dict(checkpoint=dict(interval=epoch_length))
# Its head has another number of classes; the rest is taken over.
load_from = 'eva://eva_l_psz14_21k_ft'
