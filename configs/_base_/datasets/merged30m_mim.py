# Merged-30M with block-wise masks; validation on ImageNet-1K with every other patch masked.
# One folder with a sub-folder each for ImageNet-21K, CC12M, CC3M, Objects365, COCO and ADE20K.
# Source: EVA-01/eva/datasets.py, masking_generator.py, engine_for_pretraining.py.
#
# Listing 30 M files takes a while at each start: write the list once,
# `tools/list_images.py data/merged30m --out data/merged30m/images.txt`, and set
# `train_dataloader.dataset.ann_file=images.txt`.
train_dataloader = dict(
    batch_size=32,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='ExactInfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='PretrainingImages',
        data_root='data/merged30m/',
        skip_unreadable=True,
        pipeline=[
            dict(type='TwoViewCrop', size=224, teacher_size=224),
            # 105 of 256 patches at most, 104.4 on average.
            dict(type='BlockMask', grid_size=16, num_masked=105, min_area=16),
            dict(type='PackImage'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=48,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='PretrainingImages',
        data_root='data/imagenet/val/',
        test_mode=True,
        pipeline=[
            dict(type='ResizeCenterCrop', size=224, resize=256, teacher_size=224),
            dict(type='AlternatingMask', grid_size=16),
            dict(type='PackImage'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='MIMLossMetric')
test_evaluator = val_evaluator
