# AdamW with layer-wise learning rate decay; no weight decay on 1-D tensors and biases.
# Source: EVA-01/seg/configs and EVA-01/seg/mmcv_custom/layer_decay_optimizer_constructor.py,
# https://github.com/baaivision/EVA. Learning rate, iterations and warm-up are each leaf's own.
#
# Two oddities of the published runs are kept, each an option of its own: five parts of the decoder
# learn at the lowest rate, that of the patch embedding (`depth_overrides={}` puts them at the top),
# and position embedding and class token are decayed (`no_decay.names=['pos_embed', 'cls_token']`
# spares them).
#
# Precision: fp32 throughout, as published. Gradients are not clipped.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='EVALayerDecay',
    paramwise_cfg=dict(
        layer_decay=0.95,
        no_decay=dict(one_dim=True, bias=True),
        depth_overrides={
            'decode_head.mask_embed': 0,
            'decode_head.cls_embed': 0,
            'decode_head.level_embed': 0,
            'decode_head.query_embed': 0,
            'decode_head.query_feat': 0,
        },
    ),
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=32)
