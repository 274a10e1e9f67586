# ViT-B of the pilot study. Batch, rate, warm-up, beta2 and eps are not stated by the paper; ours
# follow BEiT's ViT-B (arXiv 2106.08254, appendix): batch 2048 at 1.5e-3, 10 epochs of warm-up.
# 625 iterations are an epoch of ImageNet-1K.
_base_ = './eva_mim.py'

train_cfg = dict(type='IterBasedTrainLoop', val_interval=625)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3, betas=(0.9, 0.98), eps=1e-6))
auto_scale_lr = dict(base_batch_size=2048)
