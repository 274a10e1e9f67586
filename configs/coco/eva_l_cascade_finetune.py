"""EVA-L under Cascade R-CNN on a folder of your own in COCO format: for one small GPU.

Command:    python tools/train.py configs/coco/eva_l_cascade_finetune.py --accumulate 8 \
                --cfg-options data_root=DIR
Hardware:   one GPU, one image at a time; docs/memory.md tells what fits.
Published:  nothing, this run is ours. The authors publish EVA-L's weights and no detector of it.
Source:     eva_cascade_finetune.py; the backbone's settings are those of eva_l_cascade.py.
Proved:     it builds and steps (tests/test_configs.py). The AP was not measured here.

No detector of this size was pretrained, so that heads and pyramid start anew: expect less than of
the giant, and give it more epochs (50, twice the giant's; ours). A detector that you trained with
`eva_l_cascade.py` is a better start: `--cfg-options load_from=FILE`.
"""

_base_ = './eva_cascade_finetune.py'

model = dict(
    backbone=dict(
        size='large',
        global_block_indexes=[5, 11, 17, 23],
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='eva://eva_l_psz14'),
    ),
    neck=dict(in_channels=1024),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay=0.8))
own_data = dict(epochs=50)
load_from = None
