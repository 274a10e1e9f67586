"""LVIS v1 with test-time augmentation: three scales, each as it is and mirrored.

Command:    tools/test.py configs/lvis/eva_cascade_multi_scale_test.py eva://eva_lvis --tta
Published:  nothing; the published LVIS results are single-scale (`eva_cascade_1536_test.py`). The
            settings are ours, see ../_base_/tta/multi_scale.py.
Source:     merging follows detectron2's GeneralizedRCNNWithTTA.
Proved:     views are mapped back exactly (tests/detection/test_tta.py). The AP was not measured
            here.

Without `--tta` it would test at 1280 px.
"""

_base_ = ['./eva_cascade.py', '../_base_/tta/multi_scale.py']

model = dict(
    backbone=dict(rel_pos_interpolation='beit'),
    test_cfg=dict(rcnn=dict(score_thr=0.001, max_per_img=1000, maskness=True)),
)
val_evaluator = dict(max_dets=1000)
test_evaluator = dict(max_dets=1000)
