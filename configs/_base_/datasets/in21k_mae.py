# ImageNet-21K with noise whose order decides what is removed; validation on ImageNet-1K likewise,
# as published: with fresh masks in each.
# Source: EVA-01/eva/modeling_mae_pretrain.py, engine_for_pretraining.py.
_base_ = './merged30m_mim.py'

train_dataloader = dict(
    dataset=dict(
        data_root='data/imagenet21k/',
        pipeline=[
            dict(type='TwoViewCrop', size=224, teacher_size=224),
            dict(type='MaskNoise', grid_size=16),
            dict(type='PackImage'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='ResizeCenterCrop', size=224, resize=256, teacher_size=224),
            dict(type='MaskNoise', grid_size=16),
            dict(type='PackImage'),
        ],
    ),
)
test_dataloader = val_dataloader
