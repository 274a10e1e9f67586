# Kinetics, 16 frames of 224 px. Lists hold a line `path label` per video.
# Source: EVA-01/video/datasets/{build,pipeline}.py, https://github.com/baaivision/EVA.
dataset_type = 'EVAVideoDataset'
data_root = 'data/kinetics400/'
train_pipeline = [
    dict(type='DecordInit'),
    dict(type='SampleSegments', num_frames=16),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, 256)),
    dict(
        type='MultiScaleCrop',
        input_size=224,
        scales=(1, 0.875, 0.75, 0.66),
        max_wh_scale_gap=1,
        random_crop=False,
        num_fixed_crops=5,
    ),
    dict(type='Resize', scale=(224, 224), keep_ratio=False),
    dict(type='Flip', flip_ratio=0.5),
    # Whether a clip is changed is decided once, by how much for each frame anew.
    dict(
        type='RandomApply',
        prob=0.8,
        transforms=[
            dict(type='ColorJitterPerFrame', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
        ],
    ),
    dict(
        type='RandomApply',
        prob=0.2,
        transforms=[dict(type='TorchVisionWrapper', op='Grayscale', num_output_channels=3)],
    ),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
# One view: the middles of the segments, the centre of the frame.
val_pipeline = [
    dict(type='DecordInit'),
    dict(type='SampleSegments', num_frames=16, clips='even'),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, 256)),
    dict(type='CenterCrop', crop_size=224),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
# 4 x 3 views. The published clips are drawn at random, so that the result varies with the seed;
# for fixed ones: --cfg-options test_dataloader.dataset.pipeline.1.clips=even
test_pipeline = [
    dict(type='DecordInit'),
    dict(type='SampleSegments', num_frames=16, num_clips=4, clips='random'),
    dict(type='DecordDecode'),
    dict(type='Resize', scale=(-1, 224)),
    dict(type='ThreeCrop', crop_size=224),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
train_dataloader = dict(
    batch_size=1,
    num_workers=16,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='ExactInfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        ann_file=data_root + 'train.txt',
        data_prefix=dict(video=data_root),
        pipeline=train_pipeline,
        skip_unreadable=True,
    ),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=16,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        ann_file=data_root + 'val.txt',
        data_prefix=dict(video=data_root),
        pipeline=val_pipeline,
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=16,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        ann_file=data_root + 'val.txt',
        data_prefix=dict(video=data_root),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator
