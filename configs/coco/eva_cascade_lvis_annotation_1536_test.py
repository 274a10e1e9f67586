"""A COCO model on LVIS annotations of COCO's 80 classes, 1536 px.

LVIS outlines objects more finely, and tells which classes an image was searched for.

Command:    tools/test.py configs/coco/eva_cascade_lvis_annotation_1536_test.py eva://eva_coco_seg
Data:       data/lvis_v1/annotations/lvis_v1_val_5k_cocofied.json, which is not published: LVIS v1
            val, cut to the images of val2017 and passed through detectron2's
            datasets/prepare_cocofied_lvis.py. Images as for LVIS.
Published:  the evaluation exists, its result is not stated.
Source:     EVA-01/det/projects/ViTDet/configs/COCO/
            cascade_mask_rcnn_vitdet_eva_1536_lvis_annotation.py (data set, cap of 300),
            https://github.com/baaivision/EVA. Soft-NMS is that of the published COCO result.
Proved:     see eva_cascade_1536_test.py; categories in tests/detection/test_cocofied.py.
"""

_base_ = './eva_cascade_1536_test.py'

lvis = dict(
    _delete_=True,
    type='CocofiedLVISMetric',
    ann_file='data/lvis_v1/annotations/lvis_v1_val_5k_cocofied.json',
    metric=['bbox', 'segm'],
    max_dets=300,
)
cocofied = dict(
    dataset=dict(
        type='CocofiedLVISDataset',
        data_root='data/lvis_v1/',
        ann_file='annotations/lvis_v1_val_5k_cocofied.json',
        data_prefix=dict(img=''),
    )
)
val_dataloader = cocofied
test_dataloader = cocofied
val_evaluator = lvis
test_evaluator = lvis
# No more than 300 count, and scores do not change after NMS.
model = dict(test_cfg=dict(rcnn=dict(max_per_img=300)))
