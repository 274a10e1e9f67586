# AdamW with layer-wise learning rate decay 0.9; weight decay 0.1 on every parameter, normalisation
# and position embeddings included, as published (EVA-01/det/projects/ViTDet/configs/COCO).
# Learning rate, iterations and milestones are each leaf's own.
#
# Precision: bf16 autocast for backbone and pyramid on GPUs that have it, fp32 elsewhere; the heads
# are fp32 always. The published runs use fp16 with a dynamic loss scale in place of bf16; for that
# set `optim_wrapper.type='AmpOptimWrapper'`, `optim_wrapper.dtype='float16'` and
# `optim_wrapper.loss_scale='dynamic'`. The published runs also send gradients between GPUs in fp16;
# here they travel in fp32.
optim_wrapper = dict(
    type='BF16OptimWrapper',
    constructor='EVALayerDecay',
    paramwise_cfg=dict(layer_decay=0.9),
    optimizer=dict(type='AdamW', betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1),
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
# 8 nodes of 8 GPUs with one image each.
auto_scale_lr = dict(enable=False, base_batch_size=64)
