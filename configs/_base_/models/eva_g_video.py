# EVA-g with joint space-time attention and a linear classifier on the mean of the patch tokens.
# Source: EVA-01/video/models/beit.py, EVA-01/video/configs, https://github.com/baaivision/EVA.
model = dict(
    type='EVARecognizer',
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        # ImageNet's, not CLIP's; decord gives RGB.
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        format_shape='NCTHW',
    ),
    backbone=dict(
        type='EVAVideoTransformer',
        size='giant',
        num_frames=16,
        tubelet_size=1,
        img_size=224,
        drop_path_rate=0.2,
        activation_checkpointing=True,
    ),
    cls_head=dict(
        type='EVAVideoHead',
        num_classes=400,
        in_channels=1408,
        label_smooth_eps=0.1,
        init_scale=0.001,
        # The mean of the views' probabilities ranks as their published sum.
        average_clips='prob',
    ),
)
