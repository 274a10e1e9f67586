"""Kinetics-722, one view: the middles of 8 segments, the centre of the frame.

Command:    tools/dist_test.sh configs/kinetics/eva_g_k722_single_test.py eva://eva_video_k722 8
Published:  82.780 top-1, 95.865 top-5 (training log, last epoch; best 82.878).
Source:     EVA-01/video/datasets, EVA-01/logs/video, https://github.com/baaivision/EVA.
Proved:     frame indices against closed forms (tests/video/test_transforms.py). The accuracy was
            not measured here.

A twelfth of the work of 4 x 3 views. Training validates in this form.
"""

_base_ = './eva_g_k722.py'

test_pipeline = _base_.val_pipeline
test_dataloader = dict(batch_size=2, dataset=dict(pipeline=test_pipeline))
