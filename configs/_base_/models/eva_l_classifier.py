# EVA-L with mean pooling and a linear classifier: MAE's ViT-L, whose patch embedding learns.
# Source: EVA-01/eva/modeling_finetune.py has the class, no command was published. Parameter counts
# of the logs fit either pooling; mean is the default there. Drop path is ours: that of ViT-L in
# MAE's fine-tuning (arXiv 2111.06377, github.com/facebookresearch/mae).
model = dict(
    type='EVAClassifier',
    size='large',
    img_size=224,
    num_classes=1000,
    pooling='mean',
    drop_path_rate=0.2,
    stop_grad_patch_embed=False,
    head_init_scale=0.001,
    label_smoothing=0.1,
    activation_checkpointing=False,
    # Mean and standard deviation are CLIP's by default.
    data_preprocessor=dict(type='ClassificationDataPreprocessor'),
)
