"""Masked image modelling of EVA-g on merged-30M with CLIP ViT-L/14 as the teacher, 150 epochs.

Command:    tools/dist_train.sh configs/pretrain/eva_g_merged30m.py 8   (on each of 16 nodes)
Hardware:   128 GPUs with 32 images each, as published; hours not stated.
Published:  weights `eva_psz14`; loss -0.7490 in training, -0.7769 on the ImageNet-1K validation
            images with every other patch masked, after the last epoch.
Source:     EVA, arXiv 2211.07636, section 2 and appendix; EVA-01/eva/README.md, logs/pt and
            run_eva_pretraining.py, https://github.com/baaivision/EVA.
Proved:     teacher's targets, predictions, loss and gradients equal the authors' code on reduced
            sizes (tests/parity); parameters, groups and the mean rate of every epoch equal closed
            forms (tests/pretraining/test_schedules.py). The losses were not measured here.

7,242 iterations are an epoch of the published 29.66 M images. Seeds differ from process to process
by themselves. `Precision` is told in `../_base_/schedules/eva_mim.py`.
"""

_base_ = [
    '../_base_/models/eva_g_mim.py',
    '../_base_/datasets/merged30m_mim.py',
    '../_base_/schedules/eva_mim.py',
    '../_base_/mmengine_runtime.py',
]
custom_imports = dict(imports=['eva_mm.pretraining'], allow_failed_imports=False)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=1086300, val_interval=7242)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    # From 0, which mmengine refuses, to the peak in two epochs.
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, begin=0, end=14484),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=False,
        begin=14484,
        end=1086300,
        T_max=1071816,
    ),
]
default_hooks = dict(checkpoint=dict(interval=7242))
