"""Objects365 v2 at 1536 px, with the settings of the published COCO evaluation.

Command:    tools/test.py configs/objects365/eva_cascade_1536_test.py eva://eva_o365
Published:  nothing: neither an AP nor the order of the classes. Labels here follow the category
            ids; whether those of `eva_o365` do is not known.
Source:     as ../coco/eva_cascade_1536_test.py. Ours: candidates below 0.001 are left out, which
            soft-NMS would drop anyway, and 300 boxes per image are kept.
Proved:     see eva_cascade.py. The AP was not measured here.
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
            score_thr=1e-3,
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
