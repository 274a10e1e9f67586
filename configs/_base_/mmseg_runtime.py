# mmseg's runtime, counted in iterations, with exact resume and TensorBoard scalars.
_base_ = 'mmseg::_base_/default_runtime.py'

default_hooks = dict(
    # Metrics by iteration, not by an epoch that stays 0.
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(
        type='SafeCheckpointHook',
        by_epoch=False,
        interval=2000,
        max_keep_ckpts=3,
        save_best='mIoU',
    ),
    iteration_seed=dict(type='IterationSeedHook'),
    non_finite=dict(type='NonFiniteLossHook'),
    unreadable_images=dict(type='UnreadableImagesHook'),
    visualization=dict(type='SegVisualizationHook'),
)
custom_hooks = [dict(type='SegClassesHook')]
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
# Views of test-time augmentation are added up one by one.
tta_model = dict(type='EVASegTTAModel')
