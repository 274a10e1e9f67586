# Test-time augmentation: each image at 1536 px as it is and mirrored (`tools/test.py --tta`).
# No augmented evaluation was published; this one is ours.
tta_model = dict(type='EVADetTTAModel', tta_cfg=dict())
tta_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(
                    type='ResizeShortestEdge',
                    scale=1536,
                    max_size=1536,
                    resize_type='Resize',
                    backend='pillow',
                )
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
