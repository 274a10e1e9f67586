"""EVA-g, ViT-Adapter and Mask2Former on pictures and label maps of your own, 896 px.

Command:    python tools/train.py configs/ade20k/eva_mask2former_finetune.py \
                --cfg-options data_root=DIR
            python tools/test.py configs/ade20k/eva_mask2former_finetune.py CHECKPOINT \
                --cfg-options data_root=DIR
Data:       DIR/images/{train,val}/NAME.jpg and DIR/annotations/{train,val}/NAME.png, or the same
            without parts, of which a tenth is held out; names of the classes in DIR/classes.txt.
Hardware:   any number of GPUs, one image each.
Published:  nothing: this config is ours. Architecture, augmentation, optimizer and layer-wise decay
            are those of the published run on ADE20K after COCO-Stuff; what is ours is marked below,
            with the reason.
Source:     configs/ade20k/eva_mask2former.py; EVA-01/seg/README.md,
            https://github.com/baaivision/EVA.
Proved:     the fitted schedule, classes and parts (tests/segmentation/test_own_data.py); no mIoU
            was measured with weights of this size.
"""

_base_ = './eva_mask2former.py'

# Fitted to the data before the run: see eva_mm/segmentation/own_data.py.
fit_config = 'eva_mm.segmentation.own_data.fit_to_data'
data_root = None  # the folder: --cfg-options data_root=DIR
own_data = dict(
    # Folders below data_root that are not found by themselves; a pair each.
    train_images=None,
    train_labels=None,
    val_images=None,
    val_labels=None,
    # What a label map's name has after that of its image; None looks at the files.
    label_suffix=None,
    # Names, or a file with a name per line; None takes DIR/classes.txt, else numbers.
    classes=None,
    # True: 0 in the maps is ignored, and classes count from 1, as in ADE20K. 255 always is.
    reduce_zero_label=False,
    # Held out where there is no part for validation.
    val_fraction=0.1,
    split_seed=0,
    # The published ADE20K run sees each image 63 times (20,000 x 64 of 20,210 images), with
    # hundreds of classes to tell apart.
    epochs=40,
    # New class scores need some updates, however few the images.
    min_iterations=1000,
    # The published warm-up of ADE20K, at most a tenth of the run.
    warm_up=500,
    # The published run validates every tenth.
    num_validations=10,
)
# The published rate at 64 images per update; for B images it is multiplied by sqrt(B / 64). The
# published runs let the class scores learn at the lowest rate of all layers, an eighth of the
# highest. Here they start anew in a much shorter run, hence at the highest; the rest is as
# published.
optim_wrapper = dict(
    paramwise_cfg=dict(
        depth_overrides=dict(
            _delete_=True,
            **{
                'decode_head.mask_embed': 0,
                'decode_head.level_embed': 0,
                'decode_head.query_embed': 0,
                'decode_head.query_feat': 0,
            },
        )
    )
)

dataset = dict(type='EVASegmentationFolder')
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = dict(dataset=dataset)
# Small data sets are soon learnt by heart: keep the best checkpoint beside the last.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1))
