# EVA-g under Cascade Mask R-CNN, COCO classes, 1280 px.
# Source: EVA-01/det/projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_eva.py and the files it
# includes, https://github.com/baaivision/EVA.
model = dict(
    type='EVACascadeRCNN',
    data_preprocessor=dict(
        type='FixedSizeDetDataPreprocessor',
        pad_size=(1280, 1280),
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='EVAViTDet',
        size='giant',
        img_size=1280,
        pretrain_img_size=224,
        patch_size=16,
        window_size=16,
        global_block_indexes=[3, 7, 11, 15, 19, 23, 27, 31, 35, 39],
        rel_pos_interpolation='vitdet',
        freeze_patch_embed=True,
        drop_path_rate=0.6,
        activation_checkpointing=True,
    ),
    neck=dict(
        type='SimpleFeaturePyramid',
        in_channels=1408,
        out_channels=256,
        scale_factors=(4, 2, 1, 0.5),
        num_outs=5,
    ),
    rpn_head=dict(
        type='EVARPNHead',
        in_channels=256,
        feat_channels=256,
        num_convs=2,
        anchor_generator=dict(
            type='AnchorGenerator',
            scales=[8],
            ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
        ),
        bbox_coder=dict(type='EVADeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
    ),
    roi_head=dict(
        type='EVACascadeRoIHead',
        # The published decode weights are 10 and 5, 20 and 10, 30 and 15.
        stage_target_stds=(
            (1 / 10, 1 / 10, 1 / 5, 1 / 5),
            (1 / 20, 1 / 20, 1 / 10, 1 / 10),
            (1 / 30, 1 / 30, 1 / 15, 1 / 15),
        ),
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            in_channels=256,
            conv_out_channels=256,
            fc_out_channels=1024,
            roi_feat_size=7,
            num_classes=80,
            norm_cfg=dict(type='EVALN2d', eps=1e-6),
            reg_class_agnostic=True,
            bbox_coder=dict(type='EVADeltaXYWHBBoxCoder'),
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
            init_cfg=[
                dict(type='Normal', std=0.01, override=dict(name='fc_cls')),
                dict(type='Normal', std=0.001, override=dict(name='fc_reg')),
                dict(type='Caffe2Xavier', override=dict(name='shared_fcs')),
            ],
        ),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[4, 8, 16, 32],
        ),
        mask_head=dict(
            type='EVAMaskHead',
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=80,
            norm_cfg=dict(type='EVALN2d', eps=1e-6),
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='EVAMaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, match_low_quality=True
            ),
            sampler=dict(
                type='RandomSampler', num=256, pos_fraction=0.5, add_gt_as_proposals=False
            ),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(nms_pre=2000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7)),
        rcnn=[
            # Proposals are sampled in the first stage only; the others take all refined boxes.
            dict(
                assigner=dict(
                    type='EVAMaxIoUAssigner',
                    pos_iou_thr=0.5,
                    neg_iou_thr=0.5,
                    match_low_quality=False,
                ),
                sampler=dict(
                    type='RandomSampler', num=512, pos_fraction=0.25, add_gt_as_proposals=True
                ),
                mask_size=28,
                pos_weight=-1,
            ),
            dict(
                assigner=dict(
                    type='EVAMaxIoUAssigner',
                    pos_iou_thr=0.6,
                    neg_iou_thr=0.6,
                    match_low_quality=False,
                ),
                sampler=dict(type='PseudoSampler'),
                pos_weight=-1,
            ),
            dict(
                assigner=dict(
                    type='EVAMaxIoUAssigner',
                    pos_iou_thr=0.7,
                    neg_iou_thr=0.7,
                    match_low_quality=False,
                ),
                sampler=dict(type='PseudoSampler'),
                pos_weight=-1,
            ),
        ],
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7)),
        rcnn=dict(
            score_thr=0.05,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=100,
            mask_thr_binary=0.5,
        ),
    ),
)
