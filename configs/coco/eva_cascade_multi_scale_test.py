"""COCO with test-time augmentation: three scales, each as it is and mirrored.

Command:    tools/test.py configs/coco/eva_cascade_multi_scale_test.py eva://eva_coco_det --tta
Published:  64.5 box AP on val2017 is stated without a recipe; nothing says that it is this one.
            The settings are ours, see ../_base_/tta/multi_scale.py.
Source:     EVA-01/README.md (the number), https://github.com/baaivision/EVA. Merging follows
            detectron2's GeneralizedRCNNWithTTA.
Proved:     views are mapped back exactly (tests/detection/test_tta.py). The AP was not measured
            here.

Without `--tta` it would test at 1280 px. For masks test `eva://eva_coco_seg` and add
`--cfg-options model.test_cfg.rcnn.maskness=True`.
"""

_base_ = ['./eva_cascade.py', '../_base_/tta/multi_scale.py']

model = dict(
    backbone=dict(rel_pos_interpolation='beit'),
    test_cfg=dict(
        rcnn=dict(
            score_thr=0.0,
            nms=dict(
                _delete_=True,
                type='soft_nms',
                method='linear',
                iou_threshold=0.6,
                sigma=0.5,
                min_score=1e-3,
            ),
            max_per_img=300,
        )
    ),
)
