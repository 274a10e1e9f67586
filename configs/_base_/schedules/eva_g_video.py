# AdamW; no weight decay on vectors, biases, position embedding and class token, no gradient
# clipping, no moving average (EVA-01/video/utils/optimizer.py, EVA-01/video/configs). Rates and
# length are each leaf's own.
#
# Precision: bf16 autocast on GPUs that have it, fp32 elsewhere; the loss in fp32. The published
# runs are apex's O1 (fp16), with normalisation and the product of queries and keys in fp32.
optim_wrapper = dict(
    type='BF16OptimWrapper',
    constructor='EVALayerDecay',
    paramwise_cfg=dict(
        layer_decay=0.95,
        no_decay=dict(one_dim=True, bias=True, names=['pos_embed', 'cls_token']),
    ),
    optimizer=dict(type='AdamW', lr=1e-6, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05),
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=256)
randomness = dict(seed=1024)
