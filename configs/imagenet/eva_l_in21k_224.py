"""ImageNet-21K intermediate fine-tuning of EVA-L, 224 px.

Command:    tools/dist_train.sh configs/imagenet/eva_l_in21k_224.py 8   (on each of 8 nodes)
Hardware:   ours: 64 GPUs with 64 images each; not stated.
Published:  weights `eva_l_psz14_21k_ft`; no accuracy stated, final training loss 4.206 in the log.
Source:     EVA, arXiv 2211.07636; EVA-01/logs/cls and EVA-01/eva/README.md,
            https://github.com/baaivision/EVA. Published are weights and logs, no command. From the
            log: epochs, warm-up, rates, layer and weight decay, steps per epoch, and that images
            are mixed. Ours: values of mixing and smoothing (those of EVA-g on ImageNet-21K), betas
            and eps likewise, crop scale and RandAugment likewise, drop path, mean pooling.
Proved:     the blocks are those of masked image modelling, whose prediction and gradients equal
            the authors' code, pooling and head those of EVA-g, likewise (tests/parity); EVA-L's
            classifier as a whole was not compared. Mixing and the loss of its targets equal
            timm's (tests/classification/test_preprocessor.py, test_classifier.py);
            parameter count, groups and the rates of every epoch equal the published log
            (tests/classification/test_schedules.py). The accuracy was not measured here.
"""

_base_ = [
    '../_base_/models/eva_l_classifier.py',
    '../_base_/datasets/imagenet_21k.py',
    '../_base_/schedules/eva_cls.py',
    '../_base_/mmengine_runtime.py',
]
custom_imports = dict(imports=['eva_mm.classification'], allow_failed_imports=False)

image_size = 224
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

epochs, warm_up = 90, 15
# As in the log: 14.09 M images at 4096, or 14.197 M at 4128; the README does not tell which.
epoch_length = 3439
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=epochs * epoch_length, val_interval=epoch_length
)
optim_wrapper = dict(
    paramwise_cfg=dict(layer_decay=0.75),
    optimizer=dict(lr=6e-4, betas=(0.9, 0.98), eps=1e-6),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, end=warm_up * epoch_length),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=warm_up * epoch_length,
        end=epochs * epoch_length,
        T_max=(epochs - warm_up) * epoch_length,
        eta_min_ratio=1 / 600,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=4096)
default_hooks = dict(
    class_count=dict(type='ClassCountHook'),
    checkpoint=dict(interval=epoch_length, max_keep_ckpts=1),
)
load_from = 'eva://eva_l_psz14'
