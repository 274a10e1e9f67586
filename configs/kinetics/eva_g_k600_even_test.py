"""Kinetics-600, 4 x 3 views of fixed clips: the same video has the same answer each time.

Command:    tools/dist_test.sh configs/kinetics/eva_g_k600_even_test.py eva://eva_video_k600 8
Published:  nothing in this form: 89.808 top-1, 98.398 top-5, with clips drawn at
            random (configs/kinetics/eva_g_k600.py).
Source:     ours; clip k of 4 takes frame floor((i + (k + 0.5) / 4) * n / 16) of n for each i.
Proved:     frame indices against that closed form (tests/video/test_transforms.py). The accuracy
            was not measured here.
"""

_base_ = './eva_g_k600.py'

test_pipeline = _base_.test_pipeline
test_pipeline[1].clips = 'even'
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
