"""COCO detection and instance segmentation with EVA-g under Cascade Mask R-CNN, 1280 px.

Command:    tools/dist_train.sh configs/coco/eva_cascade.py 8   (on each of 8 nodes)
Hardware:   64 GPUs with one image each, as published; hours not stated.
Published:  64.2 box AP (weights `eva_coco_det`, after 35k of 45k iterations) and 55.0 mask AP
            (`eva_coco_seg`, 45k), both tested at 1536 px with `eva_cascade_1536_test.py` and
            `eva_cascade_1536_test_seg.py`.
Source:     EVA, arXiv 2211.07636, Table 7; EVA-01/det/README.md and
            EVA-01/det/projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_eva.py,
            https://github.com/baaivision/EVA.
Proved:     features, proposals, detections, losses and gradients equal the authors' code on reduced
            sizes (tests/parity); learning rates, groups and schedule equal closed forms
            (tests/detection/test_schedules.py). The AP was not measured here.
"""

_base_ = [
    '../_base_/models/eva_g_cascade_mask_rcnn.py',
    '../_base_/datasets/coco_lsj_1280.py',
    '../_base_/schedules/eva_g_det.py',
    '../_base_/default_runtime.py',
]
custom_imports = dict(imports=['eva_mm.detection'], allow_failed_imports=False)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=45000, val_interval=5000)
optim_wrapper = dict(optimizer=dict(lr=2.5e-5))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type='MultiStepLR', by_epoch=False, milestones=[40000, 44999], gamma=0.1),
]
# Detector pretrained on Objects365, boxes only: classifiers and mask head start anew.
load_from = 'eva://eva_o365'
model = dict(allowed_missing=['roi_head.bbox_head.*.fc_cls.*', 'roi_head.mask_head.*'])
