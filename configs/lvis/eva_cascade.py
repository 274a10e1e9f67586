"""LVIS v1 with EVA-g under Cascade Mask R-CNN and the federated loss, 1280 px.

Command:    tools/dist_train.sh configs/lvis/eva_cascade.py 8   (on each of 8 nodes)
Hardware:   64 GPUs with one image each, as published; hours not stated.
Published:  62.2 box AP, 55.0 mask AP on val (weights `eva_lvis`), tested at 1536 px with
            `eva_cascade_1536_test.py`.
Source:     EVA, arXiv 2211.07636, Table 8; EVA-01/det/README.md and
            EVA-01/det/projects/ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_eva.py,
            https://github.com/baaivision/EVA.
Proved:     features, proposals, detections, losses and gradients equal the authors' code on reduced
            sizes (tests/parity); learning rates, groups and schedule equal closed forms
            (tests/detection/test_schedules.py). The AP was not measured here.
"""

_base_ = [
    '../_base_/models/eva_g_cascade_mask_rcnn.py',
    '../_base_/datasets/lvis_v1_lsj_1280.py',
    '../_base_/schedules/eva_g_det.py',
    '../_base_/default_runtime.py',
]
custom_imports = dict(imports=['eva_mm.detection'], allow_failed_imports=False)

model = dict(
    # The weights of `load_from` lack these; see there.
    allowed_missing=['roi_head.bbox_head.*.fc_cls.*', 'roi_head.mask_head.*'],
    roi_head=dict(
        bbox_head=dict(
            num_classes=1203,
            loss_cls=dict(
                _delete_=True,
                type='FederatedLoss',
                num_classes=1203,
                num_sampled_classes=50,
                frequency_power=0.5,
            ),
        ),
        mask_head=dict(num_classes=1203),
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.02, max_per_img=300)),
)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=75001, val_interval=5000)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=251),
    dict(type='MultiStepLR', by_epoch=False, milestones=[70000, 75000], gamma=0.1),
]
# Detector pretrained on Objects365, boxes only: classifiers and mask head start anew.
load_from = 'eva://eva_o365'
