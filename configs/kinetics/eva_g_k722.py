"""Kinetics-722 intermediate fine-tuning of EVA-g, 8 frames of 224 px.

Command:    tools/dist_train.sh configs/kinetics/eva_g_k722.py 8   (on each of 16 nodes)
Hardware:   128 GPUs with 2 clips each, as published; hours not stated.
Published:  84.875 top-1, 96.828 top-5 with 4 x 3 views (training log); weights `eva_video_k722`.
Source:     EVA, arXiv 2211.07636, Table 6; EVA-01/video, EVA-01/logs/video,
            https://github.com/baaivision/EVA.
Proved:     logits, loss, gradients and the way from image weights equal the authors' code on
            reduced sizes (tests/parity); parameter count, groups and rates equal closed forms
            (tests/video/test_schedules.py). The accuracy was not measured here.

Classes are the sorted union of those of Kinetics-400, 600 and 700, a video's label the place of its
class in it. Lists: data/kinetics722/train.txt and val.txt, a line `path label` per video.
"""

_base_ = [
    '../_base_/models/eva_g_video.py',
    '../_base_/datasets/kinetics_16x224.py',
    '../_base_/schedules/eva_g_video.py',
    '../_base_/video_runtime.py',
]
custom_imports = dict(imports=['eva_mm.video'], allow_failed_imports=False)

num_frames, num_classes = 8, 722
model = dict(
    # Image weights bring no head.
    allowed_missing=['cls_head.*'],
    data_preprocessor=dict(
        # CutMix for half of the batches, Mixup for the others. Smoothing comes after, in the head.
        blending=dict(
            type='MixupOrCutmix',
            num_classes=num_classes,
            mixup=0.8,
            cutmix=1.0,
            cutmix_prob=0.5,
        ),
    ),
    backbone=dict(num_frames=num_frames, drop_path_rate=0.3),
    cls_head=dict(num_classes=num_classes),
)

data_root = 'data/kinetics722/'
train_pipeline = _base_.train_pipeline
train_pipeline[1].num_frames = num_frames
val_pipeline = _base_.val_pipeline
val_pipeline[1].num_frames = num_frames
test_pipeline = _base_.test_pipeline
test_pipeline[1].num_frames = num_frames
prefix = dict(video=data_root)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(ann_file=data_root + 'train.txt', data_prefix=prefix, pipeline=train_pipeline),
)
val_dataloader = dict(
    dataset=dict(ann_file=data_root + 'val.txt', data_prefix=prefix, pipeline=val_pipeline)
)
test_dataloader = dict(
    dataset=dict(ann_file=data_root + 'val.txt', data_prefix=prefix, pipeline=test_pipeline)
)

# 40 epochs of 2458 updates, 5 of them warm-up; the log's figures.
epochs, warm_up, epoch_length = 40, 5, 2458
total, rise = epochs * epoch_length, warm_up * epoch_length
train_cfg = dict(type='IterBasedTrainLoop', max_iters=total, val_interval=epoch_length)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=1.0), optimizer=dict(lr=8e-6))
# The published scheduler moves after an update, to the rate of that update: the first two have the
# rate of step 0, and the cosine never arrives. Its lowest rate is a hundredth of the highest.
param_scheduler = [
    dict(type='ConstantLR', factor=1e-20, by_epoch=False, end=2),
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, begin=1, end=rise + 2),
    dict(
        type='CosineAnnealingLR',
        by_epoch=False,
        begin=rise + 1,
        end=total + 1,
        T_max=total - rise,
        eta_min=8e-8,
    ),
]
default_hooks = dict(checkpoint=dict(interval=epoch_length))
load_from = 'eva://eva_psz14'
