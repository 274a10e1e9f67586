# ImageNet-1K with block-wise masks of patches of 16 px. The paper's pilot study does not state its
# masks; ours are BEiT's, at most 75 of 196 patches (arXiv 2106.08254, section 3.1).
_base_ = './merged30m_mim.py'

train_dataloader = dict(
    batch_size=64,
    dataset=dict(
        data_root='data/imagenet/train/',
        pipeline=[
            dict(type='TwoViewCrop', size=224, teacher_size=224),
            dict(type='BlockMask', grid_size=14, num_masked=75, min_area=16),
            dict(type='PackImage'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=96,
    dataset=dict(
        pipeline=[
            dict(type='ResizeCenterCrop', size=224, resize=256, teacher_size=224),
            dict(type='AlternatingMask', grid_size=14),
            dict(type='PackImage'),
        ],
    ),
)
test_dataloader = val_dataloader
