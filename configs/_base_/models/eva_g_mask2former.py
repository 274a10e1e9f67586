# EVA-g in a ViT-Adapter under Mask2Former, COCO-Stuff's classes, crops of 896 px.
# Source: EVA-01/seg/configs/_base_/models/mask2former_beit_cocostuff.py and
# EVA-01/seg/configs/coco_stuff164k, https://github.com/baaivision/EVA.
model = dict(
    type='EVASegmentor',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        # Crops of small images are padded in training; in tests nothing is.
        size=(896, 896),
        pad_val=0,
        seg_pad_val=255,
    ),
    backbone=dict(
        type='EVAViTAdapter',
        size='giant',
        img_size=896,
        patch_size=16,
        relative_position_bias=False,
        layer_scale=None,
        drop_path_rate=0.5,
        stem_channels=64,
        num_points=4,
        deform_num_heads=16,
        deform_ratio=0.5,
        cffn_ratio=0.25,
        interaction_indexes=[[0, 9], [10, 19], [20, 29], [30, 39]],
        # Several processes on CPUs need dict(type='BN').
        norm_cfg=dict(type='SyncBN'),
        activation_checkpointing=True,
        init_cfg=dict(type='Pretrained', checkpoint='eva://eva_psz14to16'),
    ),
    decode_head=dict(
        type='EVAMask2FormerHead',
        sigmoid_before_upsampling=True,
        in_channels=[1408, 1408, 1408, 1408],
        strides=[4, 8, 16, 32],
        feat_channels=1024,
        out_channels=1024,
        num_classes=171,
        num_queries=200,
        num_transformer_feat_level=3,
        align_corners=False,
        pixel_decoder=dict(
            type='mmdet.MSDeformAttnPixelDecoder',
            num_outs=3,
            norm_cfg=dict(type='GN', num_groups=32),
            act_cfg=dict(type='ReLU'),
            encoder=dict(
                num_layers=6,
                layer_cfg=dict(
                    self_attn_cfg=dict(
                        embed_dims=1024,
                        num_heads=32,
                        num_levels=3,
                        num_points=4,
                        dropout=0.0,
                        batch_first=True,
                    ),
                    ffn_cfg=dict(
                        embed_dims=1024,
                        feedforward_channels=4096,
                        num_fcs=2,
                        ffn_drop=0.0,
                        act_cfg=dict(type='ReLU', inplace=True),
                    ),
                ),
            ),
            positional_encoding=dict(num_feats=512, normalize=True),
        ),
        positional_encoding=dict(num_feats=512, normalize=True),
        transformer_decoder=dict(
            return_intermediate=True,
            num_layers=8,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=1024, num_heads=32, batch_first=True),
                cross_attn_cfg=dict(embed_dims=1024, num_heads=32, batch_first=True),
                ffn_cfg=dict(
                    embed_dims=1024,
                    feedforward_channels=4096,
                    num_fcs=2,
                    ffn_drop=0.0,
                    act_cfg=dict(type='ReLU', inplace=True),
                ),
            ),
        ),
        loss_cls=dict(
            type='mmdet.CrossEntropyLoss',
            use_sigmoid=False,
            loss_weight=2.0,
            reduction='mean',
            class_weight=[1.0] * 171 + [0.1],
        ),
        loss_mask=dict(
            type='mmdet.CrossEntropyLoss', use_sigmoid=True, reduction='mean', loss_weight=5.0
        ),
        loss_dice=dict(
            type='mmdet.DiceLoss',
            use_sigmoid=True,
            activate=True,
            reduction='mean',
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
        ),
        train_cfg=dict(
            num_points=12544,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(
                type='mmdet.HungarianAssigner',
                match_costs=[
                    dict(type='mmdet.ClassificationCost', weight=2.0),
                    dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
                    dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
            sampler=dict(type='mmdet.MaskPseudoSampler'),
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='slide', crop_size=(896, 896), stride=(512, 512)),
)
