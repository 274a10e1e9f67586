"""The pilot study's distillation in minutes: the student sees everything and learns every patch.

Command:    as of `pretrain.py`, which says the rest, with configs/demo/pretrain_distill.py
Measured:   validation loss -0.974, the mean feature's -0.758.
Changed:    nothing is hidden, and the loss is over all patches, as in
            `../pretrain/pilot_distill_short.py`.
"""

_base_ = './pretrain.py'

model = dict(predict='all')
train_dataloader = dict(
    dataset=dict(
        pipeline=[dict(type='TwoViewCrop', size=64, teacher_size=64), dict(type='PackImage')]
    )
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='ResizeCenterCrop', size=64, resize=64, teacher_size=64),
            dict(type='PackImage'),
        ]
    )
)
test_dataloader = val_dataloader
