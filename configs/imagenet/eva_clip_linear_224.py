"""Linear probe of EVA-CLIP's image tower on ImageNet-1K, 224 px.

Command:    tools/dist_train.sh configs/imagenet/eva_clip_linear_224.py 8   (on each of 5 nodes)
Hardware:   40 GPUs with 400 images each, as published; hours not stated.
Published:  86.5 top-1 (log: 86.462 in epoch 57 of 90); weights `eva_clip_lincls_224px`.
Source:     EVA, arXiv 2211.07636; EVA-01/eva/README.md, EVA-01/eva/run_class_finetuning.py and
            EVA-01/logs/cls, https://github.com/baaivision/EVA.
Proved:     the blocks are EVA-g's, whose logits and gradients equal the authors' code with mean
            pooling (tests/parity); the probe itself (class token, batch normalisation, LARS) was
            held against its formulas alone (tests/classification/test_classifier.py, test_lars.py);
            parameter count, groups and the rates of every epoch equal the published log
            (tests/classification/test_schedules.py). The accuracy was not measured here.
"""

_base_ = [
    '../_base_/models/eva_g_classifier.py',
    '../_base_/datasets/imagenet_1k.py',
    '../_base_/schedules/eva_cls.py',
    '../_base_/imagenet_1k_runtime.py',
]
custom_imports = dict(imports=['eva_mm.classification'], allow_failed_imports=False)

image_size = 224
# Batch normalisation without affine parameters and a linear layer, on frozen features.
model = dict(
    img_size=image_size,
    pooling='cls',
    linear_probe=True,
    drop_path_rate=0.0,
    label_smoothing=0.0,
    activation_checkpointing=False,
    allowed_missing=['head.*'],
    allowed_unexpected=['head.weight', 'head.bias'],
)

train_pipeline = [
    dict(type='CropWithoutRetry', size=image_size, scale=(0.08, 1.0)),
    dict(type='FlipToTensor', prob=0.5),
]
test_pipeline = [dict(type='TimmTransform', size=image_size, crop_pct=1.0)]
train_dataloader = dict(batch_size=400, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=600, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

epochs, warm_up = 90, 10
# 1,281,167 images at 16,000, without the rest.
epoch_length = 80
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=epochs * epoch_length, val_interval=epoch_length
)
val_cfg = dict(type='ValLoop')
# LARS on the head alone, one rate for all of it.
optim_wrapper = dict(
    paramwise_cfg=dict(_delete_=True, layer_decay=1.0),
    optimizer=dict(
        _delete_=True,
        type='EVALARS',
        lr=1.0,
        momentum=0.9,
        weight_decay=0.0,
        trust_coefficient=0.001,
    ),
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
auto_scale_lr = dict(enable=False, base_batch_size=16000)
custom_hooks = [dict(type='BroadcastBuffersHook')]
default_hooks = dict(checkpoint=dict(interval=epoch_length))
# Its head is the projection to the space that texts share.
load_from = 'eva://eva_clip_vision_enc'
