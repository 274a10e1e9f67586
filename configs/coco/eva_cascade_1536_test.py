"""COCO detection as published for box AP: 1536 px, soft-NMS without a cap.

Command:    tools/test.py configs/coco/eva_cascade_1536_test.py eva://eva_coco_det
Published:  64.2 box AP (64.164) on val2017.
Source:     EVA-01/det/README.md and
            EVA-01/det/projects/ViTDet/configs/COCO/cascade_mask_rcnn_vitdet_eva_1536.py.
Proved:     see eva_cascade.py; soft-NMS and 'beit' table resizing have references of their own.

Soft-NMS leaves thousands of boxes per image, and the mask head runs on each. To bound that, cap
the boxes before it: `--cfg-options model.test_cfg.rcnn.max_per_img=300`. COCO's evaluator counts
the best 100 of each class, so that such a cap can cost a little AP.

`--tta` also looks at the mirrored image (ours, see ../_base_/tta/flip_1536.py), with 300 boxes per
image; `eva_cascade_multi_scale_test.py` has three scales.
"""

_base_ = ['./eva_cascade.py', '../_base_/tta/flip_1536.py']

image_size = (1536, 1536)
test_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(
        type='ResizeShortestEdge',
        scale=image_size[0],
        max_size=image_size[0],
        resize_type='Resize',
        backend='pillow',
    ),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
model = dict(
    data_preprocessor=dict(pad_size=image_size),
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
            max_per_img=-1,
        )
    ),
)
# The mask head runs once in each view.
tta_model = dict(tta_cfg=dict(max_per_img=300))
