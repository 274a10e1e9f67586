"""The demo of videos on single frames: what they alone tell of the motion, next to nothing.

Command:    python tools/train.py configs/demo/kinetics_per_frame.py
Data:       as configs/demo/kinetics.py.
Measured:   17.1 top-1, a guess gives 16.7; 3.1 minutes of CPU time in one thread.
Changed:    a clip is one frame, and a batch holds four times as many, so that an update sees as
            many tokens; a video's answer is the mean of the probabilities of eight single frames.
"""

_base_ = './kinetics.py'

num_clips = 8
model = dict(backbone=dict(num_frames=1, tubelet_size=1))
train_pipeline = _base_.train_pipeline
train_pipeline[1].num_frames = 1
val_pipeline = _base_.val_pipeline
val_pipeline[1].update(num_frames=1, num_clips=num_clips)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(num_frames=1, num_clips=num_clips)
train_dataloader = dict(batch_size=96, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
auto_scale_lr = dict(base_batch_size=96)
