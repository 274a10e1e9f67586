"""LVIS v1 as published: 1536 px, 1000 detections per image, maskness.

Command:    tools/test.py configs/lvis/eva_cascade_1536_test.py eva://eva_lvis
Published:  62.2 box AP (62.169) and 55.0 mask AP (54.982) on val, both from this one run: the
            box AP too is counted with the scores that maskness changed.
Source:     EVA-01/det/README.md and
            EVA-01/det/projects/ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_eva_1536.py.
Proved:     see eva_cascade.py; maskness and 'beit' table resizing have references of their own.

`--tta` also looks at the mirrored image (ours, see ../_base_/tta/flip_1536.py).
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
    test_cfg=dict(rcnn=dict(score_thr=0.001, max_per_img=1000, maskness=True)),
)
val_evaluator = dict(max_dets=1000)
test_evaluator = dict(max_dets=1000)
