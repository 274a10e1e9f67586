# LVIS v1 with large-scale jitter at 1280 px and repeat-factor sampling.
# Source: EVA-01/det/projects/ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_eva.py.
_base_ = './coco_lsj_1280.py'

dataset_type = 'EVALVISDataset'
data_root = 'data/lvis_v1/'
train_dataloader = dict(
    sampler=dict(_delete_=True, type='InfiniteRepeatFactorSampler', repeat_thr=0.001),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/lvis_v1_train.json',
        data_prefix=dict(img=''),
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='annotations/lvis_v1_val.json',
        data_prefix=dict(img=''),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='EVALVISMetric', ann_file=data_root + 'annotations/lvis_v1_val.json', max_dets=300
)
test_evaluator = val_evaluator
# Negative sampling of the federated loss follows the image counts of the training set.
custom_hooks = [dict(type='FederatedClassCountsHook')]
