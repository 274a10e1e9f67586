"""COCO test-dev, masks: writes the file for the evaluation server, evaluates nothing.

Command:    tools/test.py configs/coco/eva_cascade_1536_testdev_seg.py eva://eva_coco_seg
            zip -j masks.zip \
                work_dirs/coco/eva_cascade_1536_testdev_seg/detections_test-dev2017_eva_results.json
            and hand masks.zip in at COCO's segmentation server (https://cocodataset.org/#upload).
Data:       data/coco/annotations/image_info_test-dev2017.json and data/coco/test2017/.
Published:  55.5 mask AP on test-dev, without a recipe. This is the published evaluation on val2017
            (`eva_cascade_1536_test_seg.py`) on other images, with at most 300 masks per image
            (ours, for the size of the file); with `--tta` also mirrored (ours).
Source:     EVA-01/README.md (the number), https://github.com/baaivision/EVA.
Proved:     see eva_cascade_1536_test.py; the file's form in tests/detection/test_submission.py.
"""

_base_ = './eva_cascade_1536_test_seg.py'

test_dev = 'data/coco/annotations/image_info_test-dev2017.json'
test_dataloader = dict(
    dataset=dict(
        ann_file='annotations/image_info_test-dev2017.json', data_prefix=dict(img='test2017/')
    )
)
test_evaluator = dict(
    _delete_=True,
    type='COCOSubmission',
    metric='segm',
    ann_file=test_dev,
    outfile_prefix='work_dirs/coco/eva_cascade_1536_testdev_seg/detections_test-dev2017_eva_results',
)
model = dict(test_cfg=dict(rcnn=dict(max_per_img=300)))
