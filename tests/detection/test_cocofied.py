"""COCO models on LVIS annotations: categories by COCO's ids, whatever the file calls them."""

import json

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, METRICS

from eva_mm.detection.cocofied import COCO_IDS, COCO_NAMES
from eva_mm.errors import InputError

from ..helpers import load_config

NAME = 'coco/eva_cascade_lvis_annotation_1536_test'
BOX = dict(bbox=[10, 10, 20, 20], area=400, segmentation=[[10, 10, 30, 10, 30, 30, 10, 30]])


@pytest.fixture
def path(tmp_path):
    """As detectron2 makes it: LVIS's names and order, categories without instances left out."""
    url = 'http://images.cocodataset.org/val2017/000000000139.jpg'
    data = dict(
        images=[
            dict(
                id=139, width=64, height=48, coco_url=url, neg_category_ids=[13],
                not_exhaustive_category_ids=[],
            )
        ],
        categories=[
            dict(id=72, name='television_set', frequency='c', image_count=9),
            dict(id=13, name='stop_sign', frequency='f', image_count=5),
            dict(id=90, name='toothbrush', frequency='r', image_count=3),
        ],
        annotations=[
            dict(id=1, image_id=139, category_id=72, **BOX),
            dict(id=2, image_id=139, category_id=90, **BOX),
        ],
    )  # fmt: skip
    path = tmp_path / 'lvis_v1_val_5k_cocofied.json'
    path.write_text(json.dumps(data))
    return path


def test_coco_ids():
    assert len(COCO_IDS) == len(COCO_NAMES) == 80
    known = {1: 'person', 11: 'fire hydrant', 13: 'stop sign', 27: 'backpack', 31: 'handbag',
             44: 'bottle', 46: 'wine glass', 67: 'dining table', 70: 'toilet', 72: 'tv',
             82: 'refrigerator', 84: 'book', 90: 'toothbrush'}  # fmt: skip
    numbered = dict(zip(COCO_IDS, COCO_NAMES))
    assert {i: numbered[i] for i in known} == known


def dataset_of(path):
    cfg = load_config(NAME).test_dataloader.dataset
    cfg.update(data_root='', ann_file=str(path))
    return DATASETS.build(cfg)


def test_labels_are_those_of_a_coco_model(path):
    dataset = dataset_of(path)
    assert dataset.metainfo['classes'] == CocoDataset.METAINFO['classes']
    labels = [instance['bbox_label'] for instance in dataset.get_data_info(0)['instances']]
    assert [COCO_NAMES[label] for label in labels] == ['tv', 'toothbrush']


def test_ap_by_labels_of_a_coco_model(path):
    """The television is found, the toothbrush taken for a stop sign, which is known to be absent.

    A chair is neither annotated nor listed as absent: by LVIS's rule it does not count.
    """
    cfg = load_config(NAME).test_evaluator
    cfg.update(ann_file=str(path), metric='bbox')
    metric = METRICS.build(cfg)
    metric.dataset_meta = dataset_of(path).metainfo
    names = ['tv', 'stop sign', 'chair']
    found = dict(
        bboxes=torch.tensor([[10.0, 10.0, 30.0, 30.0]] * 3),
        scores=torch.tensor([0.5, 0.6, 0.9]),
        labels=torch.tensor([COCO_NAMES.index(name) for name in names]),
    )
    metric.process({}, [dict(img_id=139, ori_shape=(48, 64), pred_instances=found)])
    values = metric.evaluate(1)
    assert values['lvis/bbox_AP'] == pytest.approx(0.5)  # of two annotated categories
    assert values['lvis/bbox_APc'] == pytest.approx(1.0)
    assert values['lvis/bbox_APr'] == pytest.approx(0.0)
    assert values['lvis/bbox_APf'] == -1  # stop signs are absent, the rest is not in the file


def test_plain_lvis_is_refused(path):
    data = json.loads(path.read_text())
    data['categories'].append(dict(id=1203, name='zucchini', frequency='c'))
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"category ids \[1203\] are none of COCO's 80"):
        dataset_of(path)
