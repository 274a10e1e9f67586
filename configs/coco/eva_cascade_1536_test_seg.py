"""COCO instance segmentation as published for mask AP: as the box run, with maskness.

Command:    tools/test.py configs/coco/eva_cascade_1536_test_seg.py eva://eva_coco_seg
Published:  55.0 mask AP (55.024) on val2017.
Source:     EVA-01/det/README.md (`model.roi_heads.maskness_thresh=0.5`).
Proved:     see eva_cascade.py; scores with maskness have references of their own.
"""

_base_ = './eva_cascade_1536_test.py'

model = dict(test_cfg=dict(rcnn=dict(maskness=True)))
