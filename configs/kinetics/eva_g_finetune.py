"""EVA-g on videos of your own, 16 frames of 224 px: classes are read from the folders.

Command:    python tools/train.py configs/kinetics/eva_g_finetune.py --cfg-options data_root=DIR
            python tools/test.py configs/kinetics/eva_g_finetune.py CHECKPOINT \
                --cfg-options data_root=DIR
Data:       DIR/train/CLASS/VIDEO and DIR/val/CLASS/VIDEO, or DIR/CLASS/VIDEO, of which a tenth is
            held out for validation.
Hardware:   any number of GPUs, one clip each.
Published:  nothing: this config is ours. Architecture, sampling, augmentation, optimizer and
            layer-wise decay are those of the published run on Kinetics-400 after Kinetics-722; what
            is ours is marked below, with the reason.
Source:     configs/kinetics/eva_g_k400.py; EVA-01/video/README.md, https://github.com/baaivision/EVA.
Proved:     the fitted schedule, classes and parts, and that a new head learns (at reduced size;
            tests/video/test_own_data.py); no accuracy was measured with weights of this size.
"""

_base_ = './eva_g_k400.py'

# Fitted to the data before the run: see eva_mm/video/own_data.py.
fit_config = 'eva_mm.video.own_data.fit_to_data'
data_root = None  # the folder: --cfg-options data_root=DIR
own_data = dict(
    # Folders below data_root that are not found by themselves (train, val and the like).
    train=None,
    val=None,
    # Held out of each class where there is no folder for validation.
    val_fraction=0.1,
    split_seed=0,
    # Small data sets need more epochs than Kinetics' 1 or 2 after 40 of Kinetics-722.
    epochs=20,
    warm_up_epochs=2,
    # A new head needs some updates, however few the videos.
    min_iterations=200,
    num_validations=10,
)
# The weights' head is of other classes: it starts anew.
model = dict(cls_head=dict(class_rows=None), allowed_missing=['cls_head.fc_cls.*'])
# The published rate of Kinetics-722 at 256 clips per update; for B clips it is multiplied by
# sqrt(B / 256). There a new head had 98,000 updates. In a few hundred of this size it stays at zero
# (a linear layer on 1408 made features of ten classes, 200 updates of 8: loss 2.295, a guess 2.303;
# at 300 times the rate 0.750, and 85 % of unseen samples right instead of 72), so its own rate is
# higher: 2.4e-3 at 256 clips.
optim_wrapper = dict(
    paramwise_cfg=dict(lr_factors={'cls_head.fc_cls': 300.0}), optimizer=dict(lr=8e-6)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-20, by_epoch=False, end=2),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=2, end=200, T_max=198, eta_min_ratio=0.01),
]
# The best of the validations is kept too: small data sets are soon learned by heart.
default_hooks = dict(checkpoint=dict(save_best='acc/top1', rule='greater'))
# One view in tests, as in validation; 4 x 3 views take twelve times as long.
test_pipeline = _base_.val_pipeline
test_dataloader = dict(batch_size=2, dataset=dict(pipeline=test_pipeline))
