# Objects365 v2 with large-scale jitter at 1280 px; files as mmdet's objects365v2_detection.py
# expects them. Transforms are those of the published COCO run, less the masks.
_base_ = './coco_lsj_1280.py'

dataset_type = 'EVAObjects365Dataset'
data_root = 'data/Objects365/Obj365_v2/'
train_pipeline = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='LargeScaleJitter', scale=(1280, 1280), ratio_range=(0.1, 2.0)),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/zhiyuan_objv2_train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/zhiyuan_objv2_val.json',
        data_prefix=dict(img='val/'),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/zhiyuan_objv2_val.json', metric='bbox')
test_evaluator = val_evaluator
