# mmaction2's runtime, counted in iterations, with exact resume and TensorBoard scalars.
_base_ = 'mmaction::_base_/default_runtime.py'

default_hooks = dict(
    # Metrics by iteration, not by an epoch that stays 0.
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(
        _delete_=True, type='SafeCheckpointHook', by_epoch=False, interval=5000, max_keep_ckpts=3
    ),
    iteration_seed=dict(type='IterationSeedHook'),
    non_finite=dict(type='NonFiniteLossHook'),
    unreadable_images=dict(type='UnreadableImagesHook'),
)
custom_hooks = [dict(type='VideoClassesHook')]
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
log_processor = dict(by_epoch=False)
