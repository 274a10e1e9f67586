# AdamW at one rate for all layers; no decay of biases, other vectors, position embedding and class
# token (the mask token is decayed, as published); gradients clipped at a norm of 3.
# Source: EVA-01/eva/README.md, optim_factory.py, utils.py. Rate and length are each leaf's own.
#
# Precision: bf16 autocast on GPUs that have it, fp32 elsewhere. The published runs use fp16 with a
# dynamic loss scale under DeepSpeed; for that set `optim_wrapper.type='AmpOptimWrapper'`,
# `optim_wrapper.dtype='float16'` and, as published (65,536 at first, doubled after 500 good steps),
# `optim_wrapper.loss_scale.init_scale=65536`, `optim_wrapper.loss_scale.growth_interval=500`. Its
# hysteresis, two overflows before the scale is halved, has no counterpart in torch's GradScaler.
# Norms and loss are fp32 as published, the softmax is left to the attention kernel.
#
# Validation is fp32. The published one is under fp16 autocast, which is faster on GPUs:
# `val_cfg.fp16=True` and `test_cfg.fp16=True` do so.
# `optim_wrapper.optimizer.fused=True` takes the fused AdamW.
optim_wrapper = dict(
    type='BF16OptimWrapper',
    constructor='EVALayerDecay',
    paramwise_cfg=dict(
        layer_decay=1.0,
        no_decay=dict(one_dim=True, bias=True, names=['pos_embed', 'cls_token']),
    ),
    optimizer=dict(type='AdamW', betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05),
    clip_grad=dict(max_norm=3.0),
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=4096)
