"""A ViT-B of EVA's kind under Cascade R-CNN on a folder of your own in COCO format.

Command:    python tools/train.py configs/coco/eva_b_cascade_finetune.py --accumulate 8 \
                --cfg-options data_root=DIR load_from=FILE
Hardware:   one small GPU, one image at a time; docs/memory.md tells what fits.
Published:  nothing, this run is ours. The authors publish no weights of this size: FILE is a
            detector that you trained with `eva_b_cascade.py`. Weights of a backbone alone:
            `model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE`.
            Without either it learns from random weights, which takes far longer.
Source:     eva_cascade_finetune.py; the backbone's settings are those of eva_b_cascade.py.
Proved:     it builds and steps (tests/test_configs.py). The AP was not measured here.
"""

_base_ = './eva_cascade_finetune.py'

model = dict(
    backbone=dict(
        size='base',
        global_block_indexes=[2, 5, 8, 11],
        drop_path_rate=0.1,
        freeze_patch_embed=False,
    ),
    neck=dict(in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.7))
own_data = dict(epochs=50)
load_from = None
