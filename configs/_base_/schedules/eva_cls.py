# AdamW with layer-wise learning rate decay; no weight decay on vectors, biases, position embedding
# and class token, no gradient clipping (EVA-01/eva/optim_factory.py, run_class_finetuning.py).
# Rates and length are each leaf's own: linear warm-up from 0, whose last step has the full rate,
# then a half cosine that starts from the full rate again.
#
# Precision: bf16 autocast on GPUs that have it, fp32 elsewhere; the loss in fp32. The published
# runs are DeepSpeed fp16, whose softmax takes fp16 logits.
optim_wrapper = dict(
    type='BF16OptimWrapper',
    constructor='EVALayerDecay',
    paramwise_cfg=dict(
        layer_decay=0.95,
        no_decay=dict(one_dim=True, bias=True, names=['pos_embed', 'cls_token']),
    ),
    optimizer=dict(type='AdamW', lr=3e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
)
randomness = dict(seed=0)
