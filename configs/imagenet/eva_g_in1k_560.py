"""ImageNet-1K fine-tuning of EVA-g after ImageNet-21K, 560 px.

Command:    tools/dist_train.sh configs/imagenet/eva_g_in1k_560.py 8   (on each of 4 nodes)
Hardware:   32 GPUs with 16 images each, as published; hours not stated.
Published:  89.7 top-1 (log: 89.725, loss 0.883, moving average of epoch 11 of 15); weights
            `eva_21k_1k_560px`.
Source:     EVA, arXiv 2211.07636; EVA-01/eva/README.md, EVA-01/eva/run_class_finetuning.py and
            EVA-01/logs/cls, https://github.com/baaivision/EVA.
Proved:     logits, loss (without smoothing) and gradients equal the authors' code on reduced sizes
            (tests/parity); label smoothing equals timm's (tests/classification/test_classifier.py);
            parameter count, groups and the rates of every epoch equal the published log
            (tests/classification/test_schedules.py). The accuracy was not measured here.
"""

_base_ = './eva_g_in1k_336.py'

image_size = 560
model = dict(img_size=image_size)

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
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

epochs, warm_up = 15, 2
# 1,281,167 images at 512, without the rest.
epoch_length = 2502
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=epochs * epoch_length, val_interval=epoch_length
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
