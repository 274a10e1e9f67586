# ImageNet-1K in class folders, `train/n01440764/...` and `val/n01440764/...`. Transforms depend on
# the image size and stand in each leaf.
_base_ = './imagenet_variants.py'

dataset_type = 'ClassificationImages'
data_root = 'data/imagenet/'
train_dataloader = dict(
    batch_size=16,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='ExactInfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(type=dataset_type, data_root=data_root + 'train', classes='imagenet-1k'),
)
val_dataloader = dict(
    batch_size=24,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type=dataset_type, data_root=data_root + 'val', classes='imagenet-1k', test_mode=True
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ClassificationMetric', topk=(1, 5))
test_evaluator = val_evaluator
