# Runtime of the tasks that need mmengine alone, counted in iterations, with exact resume and
# TensorBoard scalars.
default_scope = 'mmengine'
default_hooks = dict(
    # Metrics by iteration, not by an epoch that stays 0.
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=3),
    iteration_seed=dict(type='IterationSeedHook'),
    non_finite=dict(type='NonFiniteLossHook'),
    unreadable_images=dict(type='UnreadableImagesHook'),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(
    by_epoch=False,
    # What is smoothed: losses and times of training. mmengine's own pattern takes in the losses of
    # validation too (`pretrain/loss`), and prints the mean of the last few for that of this one.
    mean_pattern=r'^[^/]*(loss|time|grad_norm)',
)
log_level = 'INFO'
load_from = None
resume = False
