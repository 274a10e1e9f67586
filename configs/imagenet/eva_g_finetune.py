"""EVA-g on image folders of your own, 336 px: classes are read from the folders.

Command:    python tools/train.py configs/imagenet/eva_g_finetune.py --cfg-options data_root=DIR
            python tools/test.py configs/imagenet/eva_g_finetune.py CHECKPOINT \
                --cfg-options data_root=DIR
Data:       DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, or DIR/CLASS/IMAGE, of which a tenth is
            held out for validation.
Hardware:   any number of GPUs, 16 images each.
Published:  nothing: this config is ours. Architecture, augmentation, optimizer and layer-wise decay
            are those of the published run on ImageNet-1K after ImageNet-21K; what is ours is marked
            below, with the reason.
Source:     configs/imagenet/eva_g_in1k_336.py; EVA-01/eva/README.md, https://github.com/baaivision/EVA.
Proved:     the fitted schedule, classes and parts (tests/classification/test_own_data.py); no
            accuracy was measured with weights of this size.
"""

_base_ = './eva_g_in1k_336.py'

# Fitted to the data before the run: see eva_mm/classification/own_data.py.
fit_config = 'eva_mm.classification.own_data.fit_to_data'
data_root = None  # the folder: --cfg-options data_root=DIR
own_data = dict(
    # Folders below data_root that are not found by themselves (train, val and the like).
    train=None,
    val=None,
    # Held out of each class where there is no folder for validation.
    val_fraction=0.1,
    split_seed=0,
    # Small data sets need more epochs than ImageNet's 10.
    epochs=20,
    warm_up_epochs=2,
    # A new head needs some updates, however few the images.
    min_iterations=200,
    num_validations=10,
    # Memory of the moving average as a share of the run. The published one, 0.4, keeps much of the
    # new head's near-zero weights.
    ema_memory=0.1,
)
# The published rate at 512 images per update; for B images it is multiplied by sqrt(B / 512).
