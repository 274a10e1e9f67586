"""Pilot study, tokenised CLIP features: ViT-B/16, ImageNet-1K, 300 epochs.

Command:    tools/dist_train.sh configs/pretrain/pilot_tokenized_short.py 8   (on each of 4 nodes)
Codebook:   tools/build_codebook.py configs/pretrain/pilot_tokenized_short.py, first.
Hardware:   not stated; 32 GPUs with 64 images each make the batch of 2048.
Published:  no weights.
Source:     EVA, arXiv 2211.07636, section 2.1: three kinds of target at shorter and longer
            schedules. No code, command or log of it is published; teacher, masks, batch and rates
            here are ours. The numbers of epochs have not been checked against the paper's table.
Proved:     model, target and gradients are those of the leaf `eva_g_merged30m` (tests/parity);
            rates equal closed forms (tests/pretraining/test_schedules.py). Nothing was measured.

Cross-entropy to the nearest of 8,192 directions of CLIP's features.
"""

_base_ = [
    '../_base_/models/eva_b_mim.py',
    '../_base_/datasets/in1k_mim.py',
    '../_base_/schedules/eva_b_mim.py',
    '../_base_/mmengine_runtime.py',
]
custom_imports = dict(imports=['eva_mm.pretraining'], allow_failed_imports=False)

# K = 8192 is BEiT's number of visual tokens (arXiv 2106.08254); the paper's is not stated.
model = dict(
    target=dict(
        _delete_=True,
        type='CodebookClassification',
        codebook='data/codebooks/clip_vit_b16_8192.pth',
        num_codes=8192,
        feature_dim=512,
    ),
)

train_cfg = dict(max_iters=187500)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, begin=0, end=6250),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=False,
        begin=6250,
        end=187500,
        T_max=181250,
    ),
]
default_hooks = dict(checkpoint=dict(interval=6250))
