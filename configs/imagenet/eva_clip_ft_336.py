"""ImageNet-1K fine-tuning of EVA-CLIP's image tower, 336 px.

Command:    tools/dist_train.sh configs/imagenet/eva_clip_ft_336.py 8   (on each of 4 nodes)
Hardware:   32 GPUs with 16 images each, as published; hours not stated.
Published:  89.4 top-1 (log: 89.383, loss 0.694, moving average of epoch 17 of 20); weights
            `eva_clip_ft_336px`.
Source:     EVA, arXiv 2211.07636; EVA-01/eva/README.md, EVA-01/eva/run_class_finetuning.py and
            EVA-01/logs/cls, https://github.com/baaivision/EVA.
Proved:     logits, loss (without smoothing) and gradients equal the authors' code on reduced sizes
            (tests/parity); label smoothing equals timm's (tests/classification/test_classifier.py);
            parameter count, groups and the rates of every epoch equal the published log
            (tests/classification/test_schedules.py). The accuracy was not measured here.
"""

_base_ = './eva_clip_ft_224.py'

image_size = 336
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
