"""EVA-g under Cascade R-CNN on a folder of your own in COCO format, boxes or boxes and masks.

Command:    python tools/train.py configs/coco/eva_cascade_finetune.py --cfg-options data_root=DIR
            python tools/test.py configs/coco/eva_cascade_finetune.py CHECKPOINT \
                --cfg-options data_root=DIR
Hardware:   any number of GPUs, one image each; docs/memory.md tells what fits.
Published:  nothing: this config is ours. Architecture, augmentation, optimizer and layer-wise decay
            are those of the published COCO run; what is ours is marked below, with the reason.
Source:     configs/coco/eva_cascade.py; EVA-01/det/projects/ViTDet/configs/COCO,
            https://github.com/baaivision/EVA.
Proved:     the demo form learns generated scenes; layouts, box-only, one and 500 classes, odd ids
            and odd images pass through it (docs/own_data.md, tests/detection/test_own_data.py).
"""

_base_ = [
    '../_base_/models/eva_g_cascade_mask_rcnn.py',
    '../_base_/datasets/coco_lsj_1280.py',
    '../_base_/schedules/eva_g_det.py',
    '../_base_/default_runtime.py',
]
custom_imports = dict(imports=['eva_mm.detection'], allow_failed_imports=False)

# Detector pretrained on Objects365, boxes only: classifiers and mask head start anew.
load_from = 'eva://eva_o365'
model = dict(allowed_missing=['roi_head.bbox_head.*.fc_cls.*', 'roi_head.mask_head.*'])

# Fitted to the data before the run: see eva_mm/detection/own_data.py.
fit_config = 'eva_mm.detection.own_data.fit_to_data'
data_root = None  # the folder: --cfg-options data_root=DIR
own_data = dict(
    # Files and folders in the data set that are not found or not meant by themselves.
    train_ann=None,
    train_images=None,
    val_ann=None,
    val_images=None,
    # True or False; None takes masks when every annotation has one, none when no annotation has.
    masks=None,
    # Held out for validation when there is no file for it: enough to tell, little to miss.
    val_fraction=0.15,
    split_seed=0,
    # The published COCO run sees each image 24.6 times (45,000 x 64 of 117,266 images).
    epochs=25,
    # New classifiers and mask head need some training, however few the images: as many images in
    # all (each time that one is seen counts), and as many updates however large the batch.
    min_images=1000,
    min_iterations=100,
    # The published warm-up of COCO, at most a tenth of the run.
    warm_up=500,
    # The published steps of COCO, relative to 45,000 iterations.
    steps=[8 / 9, 44999 / 45000],
    # The published run validates every ninth.
    num_validations=9,
)
# Between COCO's 2.5e-5, whose classes Objects365 has, and LVIS's 2e-4, where most are new, both at
# 64 images per update. For B images it is multiplied by sqrt(B / 64), the rule for Adam
# (arXiv 2205.10330); the linear rule would leave single GPUs hardly any rate.
optim_wrapper = dict(optimizer=dict(lr=1e-4))
auto_scale_lr = dict(base_batch_size=64)
# As for 45,000 iterations; scaled to the run.
train_cfg = dict(type='IterBasedTrainLoop', max_iters=45000, val_interval=5000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=501),
    dict(type='MultiStepLR', by_epoch=False, milestones=[40000, 44999], gamma=0.1),
]
# Small data sets are soon learnt by heart: keep the best checkpoint beside the last.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP', rule='greater'))
