# ImageNet-21K: 21,841 class folders. The published runs evaluate nothing on it. Damaged files of
# its releases are replaced by others. `type='TarImages'` reads its tar files, one per class.
train_dataloader = dict(
    batch_size=64,
    num_workers=10,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='ExactInfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ClassificationImages',
        data_root='data/imagenet21k/',
        classes='imagenet-22k',
        skip_unreadable=True,
    ),
)
