# Runtime of fine-tuning on ImageNet-1K: the model and its moving average are evaluated after every
# epoch, and the best epoch of the average is kept, as the released weights are.
_base_ = './mmengine_runtime.py'

val_cfg = dict(type='RawAndAveragedValLoop')
test_cfg = dict(type='TestLoop')
custom_hooks = [dict(type='EVAEMAHook', decay=0.9999)]
default_hooks = dict(
    class_count=dict(type='ClassCountHook'),
    checkpoint=dict(max_keep_ckpts=1, save_best='accuracy/top1', rule='greater'),
)
