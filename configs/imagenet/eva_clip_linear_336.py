"""Linear probe of EVA-CLIP's image tower on ImageNet-1K, 336 px.

Command:    tools/dist_train.sh configs/imagenet/eva_clip_linear_336.py 8   (on each of 5 nodes)
Hardware:   40 GPUs with 400 images each, as published; hours not stated.
Published:  86.5 top-1 (log: 86.496 in epoch 65 of 90); weights `eva_clip_lincls_336px`.
Source:     EVA, arXiv 2211.07636; EVA-01/eva/README.md, EVA-01/eva/run_class_finetuning.py and
            EVA-01/logs/cls, https://github.com/baaivision/EVA.
Proved:     the blocks are EVA-g's, whose logits and gradients equal the authors' code with mean
            pooling (tests/parity); the probe itself (class token, batch normalisation, LARS) was
            held against its formulas alone (tests/classification/test_classifier.py, test_lars.py);
            parameter count, groups and the rates of every epoch equal the published log
            (tests/classification/test_schedules.py). The accuracy was not measured here.
"""

_base_ = './eva_clip_linear_224.py'

image_size = 336
model = dict(img_size=image_size)

train_pipeline = [
    dict(type='CropWithoutRetry', size=image_size, scale=(0.08, 1.0)),
    dict(type='FlipToTensor', prob=0.5),
]
test_pipeline = [dict(type='TimmTransform', size=image_size, crop_pct=1.0)]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.6))
