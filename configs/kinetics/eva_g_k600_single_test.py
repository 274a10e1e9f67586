"""Kinetics-600, one view: the middles of 16 segments, the centre of the frame.

Command:    tools/dist_test.sh configs/kinetics/eva_g_k600_single_test.py eva://eva_video_k600 8
Published:  nothing in this form (see the 4 x 3 views of
            configs/kinetics/eva_g_k600.py).
Source:     EVA-01/video/datasets, EVA-01/logs/video, https://github.com/baaivision/EVA.
Proved:     frame indices against closed forms (tests/video/test_transforms.py). The accuracy was
            not measured here.

A twelfth of the work of 4 x 3 views. Training validates in this form.
"""

_base_ = './eva_g_k600.py'

test_pipeline = _base_.val_pipeline
test_dataloader = dict(batch_size=2, dataset=dict(pipeline=test_pipeline))
