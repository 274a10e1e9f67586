"""Objects365 v2 with EVA-g under Cascade R-CNN, 1280 px: the pretraining of EVA's detectors.

Command:    tools/dist_train.sh configs/objects365/eva_cascade.py 8   (on each of 8 nodes)
Hardware:   not stated; 64 GPUs with one image each, as the COCO and LVIS runs have.
Published:  weights `eva_o365` after 380k iterations; no AP.
Source:     EVA, arXiv 2211.07636; EVA-01/det/README.md (iterations),
            https://github.com/baaivision/EVA. The run's config is not published; what follows is
            ours where no source stands beside it.
Proved:     learning rates, groups and schedule equal closed forms
            (tests/detection/test_schedules.py). The AP was not measured here.

Ours, and why:
    model, jitter, weight decay, layer decay, drop path   those of both published fine-tunings
    no mask head                                          Objects365 has boxes only
    64 images per update                                  as the published fine-tunings; 14 epochs
    rate 1e-4, steps at 8/9 and 26/27 of the run          ViTDet's (arXiv 2203.16527) for detectors
                                                          that start from masked pretraining
    start from `eva_psz14to16`                            its patches are those of the detector
    labels by category id                                 the order of `eva_o365` is not stated
    validation every 20,000 iterations                    80,000 images
"""

_base_ = [
    '../_base_/models/eva_g_cascade_mask_rcnn.py',
    '../_base_/datasets/objects365v2_lsj_1280.py',
    '../_base_/schedules/eva_g_det.py',
    '../_base_/default_runtime.py',
]
custom_imports = dict(imports=['eva_mm.detection'], allow_failed_imports=False)

model = dict(
    # Whether `eva_o365` brings a mask head, which no annotation could have trained, is not stated.
    allowed_unexpected=['roi_head.mask_head.*'],
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='eva://eva_psz14to16')),
    roi_head=dict(bbox_head=dict(num_classes=365), mask_roi_extractor=None, mask_head=None),
)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=380000, val_interval=20000)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type='MultiStepLR', by_epoch=False, milestones=[338000, 366000], gamma=0.1),
]
