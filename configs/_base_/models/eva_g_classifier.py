# EVA-g with mean pooling and a linear classifier, as fine-tuned on ImageNet.
# Source: EVA-01/eva/modeling_finetune.py; the initial scale of the head (0.001) and the stop of the
# gradient behind the patch embedding are defaults there that no published command reaches.
model = dict(
    type='EVAClassifier',
    size='giant',
    img_size=224,
    num_classes=1000,
    pooling='mean',
    drop_path_rate=0.4,
    stop_grad_patch_embed=True,
    head_init_scale=0.001,
    label_smoothing=0.3,
    activation_checkpointing=True,
    # Mean and standard deviation are CLIP's by default.
    data_preprocessor=dict(type='ClassificationDataPreprocessor'),
)
