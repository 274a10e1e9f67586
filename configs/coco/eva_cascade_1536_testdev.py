"""COCO test-dev, boxes: writes the file for the evaluation server, evaluates nothing.

Command:    tools/test.py configs/coco/eva_cascade_1536_testdev.py eva://eva_coco_det
            zip -j boxes.zip \
                work_dirs/coco/eva_cascade_1536_testdev/detections_test-dev2017_eva_results.json
            and hand boxes.zip in at COCO's detection server (https://cocodataset.org/#upload).
Data:       data/coco/annotations/image_info_test-dev2017.json and data/coco/test2017/.
Published:  64.7 box AP on test-dev, without a recipe. This is the published evaluation on val2017
            (`eva_cascade_1536_test.py`) on other images; with `--tta` also mirrored (ours).
Source:     EVA-01/README.md (the number), https://github.com/baaivision/EVA.
Proved:     see eva_cascade_1536_test.py; the file's form in tests/detection/test_submission.py.
"""

_base_ = './eva_cascade_1536_test.py'

test_dev = 'data/coco/annotations/image_info_test-dev2017.json'
test_dataloader = dict(
    dataset=dict(
        ann_file='annotations/image_info_test-dev2017.json', data_prefix=dict(img='test2017/')
    )
)
test_evaluator = dict(
    _delete_=True,
    type='COCOSubmission',
    metric='bbox',
    ann_file=test_dev,
    outfile_prefix='work_dirs/coco/eva_cascade_1536_testdev/detections_test-dev2017_eva_results',
)
# The server counts 100 boxes of each class; boxes need no masks.
model = dict(
    roi_head=dict(mask_head=None, mask_roi_extractor=None),
    allowed_unexpected=['roi_head.mask_head.*'],
)
