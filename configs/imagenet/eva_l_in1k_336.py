"""ImageNet-1K fine-tuning of EVA-L right after masked image modelling, 336 px.

Command:    tools/dist_train.sh configs/imagenet/eva_l_in1k_336.py 8   (on each of 4 nodes)
Hardware:   ours: 32 GPUs with 32 images each; not stated.
Published:  88.6 top-1 (log: 88.652, moving average of epoch 44 of 50); weights
            `eva_l_psz14_336px_1k_ft`.
Source:     EVA, arXiv 2211.07636; EVA-01/logs/cls and EVA-01/eva/README.md,
            https://github.com/baaivision/EVA. Published are weights and logs, no command. From the
            log: epochs, warm-up, rates, layer and weight decay, steps per epoch, that images are
            mixed, and that there is a moving average. Ours: mixup 0.8, CutMix 1.0, smoothing 0.1,
            drop path 0.2 (MAE's fine-tuning of ViT-L, github.com/facebookresearch/mae); decay of
            the average, betas, eps, crop scale, RandAugment and, in evaluation, crop_pct 1.0 as for
            EVA-g; mean pooling.
Proved:     the blocks are those of masked image modelling, whose prediction and gradients equal
            the authors' code, pooling and head those of EVA-g, likewise (tests/parity); EVA-L's
            classifier as a whole was not compared. Mixing and the loss of its targets equal
            timm's (tests/classification/test_preprocessor.py, test_classifier.py);
            parameter count, groups and the rates of every epoch equal the published log
            (tests/classification/test_schedules.py). The accuracy was not measured here.
"""

_base_ = './eva_l_in1k_196.py'

image_size = 336
model = dict(img_size=image_size)

train_pipeline = [
    dict(
        type='TimmTransform',
        size=image_size,
        is_training=True,
        scale=(0.08, 1.0),
        auto_augment='rand-m9-mstd0.5-inc1',
    ),
]
test_pipeline = [dict(type='TimmTransform', size=image_size, crop_pct=1.0)]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
