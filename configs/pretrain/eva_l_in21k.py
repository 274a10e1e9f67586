"""Masked pretraining of EVA-L on ImageNet-21K with EVA-CLIP as the teacher, 150 epochs.

Command:    tools/dist_train.sh configs/pretrain/eva_l_in21k.py 8   (on each of 16 nodes)
Hardware:   not stated; 128 GPUs with 32 images each make the batch of 4096.
Published:  weights `eva_l_psz14`; loss -0.7464 in training, -0.7514 on the ImageNet-1K validation
            images with random masks, after the last epoch.
Source:     EVA-01/eva/modeling_mae_pretrain.py and logs/pt, https://github.com/baaivision/EVA.
            Rates, beta2 and lengths are solved from the log; beta1, eps, clipping and the data
            pipeline are not stated, and those of EVA-g here.
Proved:     latents, predictions, loss and gradients equal the authors' code on reduced sizes
            (tests/parity); 316,576,768 trainable parameters; groups and the mean rate of every
            epoch equal closed forms (tests/pretraining/test_schedules.py). The losses were not
            measured here.

3,466 iterations are an epoch of 14.197 M images.
"""

_base_ = [
    '../_base_/models/eva_l_mae.py',
    '../_base_/datasets/in21k_mae.py',
    '../_base_/schedules/eva_mim.py',
    '../_base_/mmengine_runtime.py',
]
custom_imports = dict(imports=['eva_mm.pretraining'], allow_failed_imports=False)

train_cfg = dict(type='IterBasedTrainLoop', max_iters=519900, val_interval=3466)
optim_wrapper = dict(
    # Position embeddings are fixed.
    paramwise_cfg=dict(no_decay=dict(names=['cls_token'])),
    optimizer=dict(lr=2.4e-3, betas=(0.9, 0.95)),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, begin=0, end=6932),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=False,
        begin=6932,
        end=519900,
        T_max=512968,
    ),
]
default_hooks = dict(checkpoint=dict(interval=3466))
