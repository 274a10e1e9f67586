# Test-time augmentation: three scales, each as it is and mirrored (`tools/test.py --tta`).
# Ours: the training size, the published test size and one more step of 256 px. Every view is
# padded to its own square, which is the published padding at 1280 and at 1536 px.
tta_model = dict(type='EVADetTTAModel', tta_cfg=dict(), pad_divisor=32)
tta_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(
                    type='ResizeShortestEdge',
                    scale=side,
                    max_size=side,
                    resize_type='Resize',
                    backend='pillow',
                )
                for side in (1536, 1280, 1792)
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
