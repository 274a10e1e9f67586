# ADE20K in crops of 896 px, tested at a short side of 896 px.
# Source: EVA-01/seg/configs/ade20k, https://github.com/baaivision/EVA.
_base_ = 'mmseg::_base_/datasets/ade20k.py'

dataset_type = 'EVAADE20KDataset'
crop_size = (896, 896)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(3584, 896), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(3584, 896), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    # After resizing: scores are taken at the original size.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
# Seven scales, each as it is and mirrored (`tools/test.py --tta`).
# As published for ADE20K: sides become multiples of 32, and what is smaller than a window gets
# black on the right and at the bottom to the window's size, before colours are normalised.
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(4 * side, side), keep_ratio=True)
                for side in (512, 640, 768, 896, 1024, 1152, 1280)
            ],
            [dict(type='ResizeToMultiple', size_divisor=32)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='PadAtLeast', size=crop_size)],
            [dict(type='LoadAnnotations')],
            [
                dict(
                    type='PackSegInputs',
                    meta_keys=(
                        'img_path',
                        'seg_map_path',
                        'ori_shape',
                        'img_shape',
                        'pad_shape',
                        'padding_size',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                        'reduce_zero_label',
                    ),
                )
            ],
        ],
    ),
]
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    sampler=dict(_delete_=True, type='ExactInfiniteSampler', shuffle=True),
    dataset=dict(type=dataset_type, pipeline=train_pipeline),
)
val_dataloader = dict(num_workers=4, dataset=dict(type=dataset_type, pipeline=test_pipeline))
test_dataloader = val_dataloader
