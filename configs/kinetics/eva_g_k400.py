"""Kinetics-400 fine-tuning of EVA-g after Kinetics-722, 16 frames of 224 px.

Command:    tools/dist_train.sh configs/kinetics/eva_g_k400.py 8 --accumulate 2   (on each of 16
            nodes)
Hardware:   128 GPUs with one clip each and 2 passes per update (training log); hours not stated.
Published:  89.686 top-1, 98.264 top-5 with 4 x 3 views (log; README: 89.7);
            weights `eva_video_k400`.
Source:     EVA, arXiv 2211.07636, Table 6; EVA-01/video, EVA-01/logs/video,
            https://github.com/baaivision/EVA.
Proved:     logits, loss, gradients and the way from 8 to 16 frames equal the authors' code on
            reduced sizes (tests/parity); parameter count, groups and rates equal closed forms
            (tests/video/test_schedules.py). The accuracy was not measured here.

Lists: data/kinetics400/train.txt and val.txt, a line `path label` per video. Which rows of the
Kinetics-722 head are the classes of this one, in their sorted order, stands in
data/kinetics400/k722_to_k400.npy, which tools/map_classes.py writes from the class folders.
"""

_base_ = [
    '../_base_/models/eva_g_video.py',
    '../_base_/datasets/kinetics_16x224.py',
    '../_base_/schedules/eva_g_video.py',
    '../_base_/video_runtime.py',
]
custom_imports = dict(imports=['eva_mm.video'], allow_failed_imports=False)

data_root = 'data/kinetics400/'
model = dict(
    cls_head=dict(num_classes=400, class_rows=data_root + 'k722_to_k400.npy'),
)
prefix = dict(video=data_root)
train_dataloader = dict(dataset=dict(ann_file=data_root + 'train.txt', data_prefix=prefix))
val_dataloader = dict(dataset=dict(ann_file=data_root + 'val.txt', data_prefix=prefix))
test_dataloader = dict(dataset=dict(ann_file=data_root + 'val.txt', data_prefix=prefix))

# One epoch of 916 updates at 256 clips; the rate is constant.
epochs, epoch_length = 1, 916
train_cfg = dict(
    type='IterBasedTrainLoop', max_iters=epochs * epoch_length, val_interval=epoch_length
)
param_scheduler = [
    dict(type='ConstantLR', factor=1.0, by_epoch=False, end=epochs * epoch_length),
]
default_hooks = dict(checkpoint=dict(interval=epoch_length))
load_from = 'eva://eva_video_k722'
