"""Files for COCO's evaluation server."""

import json

import pytest
import torch
from mmdet.registry import METRICS
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from ..helpers import load_config


@pytest.fixture
def info(tmp_path):
    """What test-dev comes with: images and categories, no annotations."""
    path = tmp_path / 'image_info_test-dev2017.json'
    images = [dict(id=i, file_name=f'{i}.jpg', width=40, height=30) for i in (7, 3)]
    categories = [dict(id=i, name=name) for i, name in ((1, 'person'), (90, 'toothbrush'))]
    path.write_text(json.dumps(dict(images=images, categories=categories)))
    return path


def sample(image_id, scores, labels):
    count = len(scores)
    boxes = torch.tensor([[2.0, 3.0, 12.0, 23.0]]).repeat(count, 1)
    masks = torch.zeros(count, 30, 40, dtype=torch.bool)
    masks[:, 5:9, 4:10] = True
    found = dict(
        bboxes=boxes, scores=torch.tensor(scores), labels=torch.tensor(labels), masks=masks
    )
    return dict(img_id=image_id, ori_shape=(30, 40), pred_instances=found)


def written(name, info, tmp_path, samples, **options):
    cfg = load_config(name).test_evaluator
    prefix = tmp_path / 'out' / 'detections_test-dev2017_eva_results'
    cfg.update(ann_file=str(info), outfile_prefix=str(prefix), **options)
    metric = METRICS.build(cfg)
    metric.dataset_meta = dict(classes=('person', 'toothbrush'))
    metric.process({}, samples)
    assert metric.evaluate(len(samples)) == {}
    return prefix.with_suffix('.json')


def test_boxes(info, tmp_path):
    samples = [sample(7, [0.9, 0.2], [0, 1]), sample(3, [], [])]
    path = written('coco/eva_cascade_1536_testdev', info, tmp_path, samples)
    records = json.loads(path.read_text())
    assert [set(record) for record in records] == [{'image_id', 'category_id', 'bbox', 'score'}] * 2
    assert [record['category_id'] for record in records] == [1, 90]
    assert records[0]['bbox'] == [2.0, 3.0, 10.0, 20.0]


def test_masks_are_measured_as_masks(info, tmp_path):
    """pycocotools, as the server, takes a box's area where there is one."""
    path = written('coco/eva_cascade_1536_testdev_seg', info, tmp_path, [sample(7, [0.9], [1])])
    records = json.loads(path.read_text())
    assert [set(record) for record in records] == [
        {'image_id', 'category_id', 'segmentation', 'score'}
    ]
    assert mask_utils.area(records[0]['segmentation']) == 24
    loaded = COCO(str(info)).loadRes(str(path))
    assert [entry['area'] for entry in loaded.dataset['annotations']] == [24]


def test_only_what_counts_is_written(info, tmp_path):
    scores = [0.1, 0.9, 0.5, 0.8, 0.3]
    samples = [sample(7, scores, [0, 0, 0, 1, 0])]
    name = 'coco/eva_cascade_1536_testdev'
    path = written(name, info, tmp_path, samples, max_dets=2)
    found = [(r['category_id'], round(r['score'], 3)) for r in json.loads(path.read_text())]
    assert sorted(found) == [(1, 0.5), (1, 0.9), (90, 0.8)]


def test_results_are_not_evaluated_here(info):
    options = dict(type='COCOSubmission', ann_file=str(info), outfile_prefix='x')
    with pytest.raises(ValueError, match='r.json cannot be evaluated here: the server has'):
        METRICS.build(options).evaluate_results_file('r.json')


def test_one_file_holds_boxes_or_masks(info):
    options = dict(type='COCOSubmission', ann_file=str(info), outfile_prefix='x')
    with pytest.raises(ValueError, match='one file each'):
        METRICS.build(dict(options, metric=['bbox', 'segm']))
