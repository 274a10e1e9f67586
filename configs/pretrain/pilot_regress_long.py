"""Pilot study, masked regression of CLIP features: ViT-B/16, ImageNet-1K, 800 epochs.

Command:    tools/dist_train.sh configs/pretrain/pilot_regress_long.py 8   (on each of 4 nodes)
Hardware:   not stated; 32 GPUs with 64 images each make the batch of 2048.
Published:  no weights.
Source:     EVA, arXiv 2211.07636, section 2.1: three kinds of target at shorter and longer
            schedules. No code, command or log of it is published; teacher, masks, batch and rates
            here are ours. The numbers of epochs have not been checked against the paper's table.
Proved:     model, target and gradients are those of the leaf `eva_g_merged30m` (tests/parity);
            rates equal closed forms (tests/pretraining/test_schedules.py). Nothing was measured.

As `pilot_regress_short`, for 800 epochs in place of 300.
"""

_base_ = './pilot_regress_short.py'

train_cfg = dict(max_iters=500000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, begin=0, end=6250),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=False,
        begin=6250,
        end=500000,
        T_max=493750,
    ),
]
