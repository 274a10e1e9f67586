"""Objects365 in mmdet's layout."""

import json

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS

from ..helpers import load_config


@pytest.fixture
def root(tmp_path):
    """Three images, one of which was never released; ids out of order."""
    files = {
        5: 'images/v1/patch8/objects365_v1_00420917.jpg',
        2: 'images/v2/patch16/objects365_v2_00908726.jpg',
        9: 'images/v2/patch20/objects365_v2_01000000.jpg',
    }
    data = dict(
        images=[dict(id=i, file_name=name, width=80, height=60) for i, name in files.items()],
        categories=[dict(id=2, name='Sneakers'), dict(id=1, name='Person')],
        annotations=[
            dict(id=10 * i, image_id=i, category_id=2, bbox=[8, 8, 30, 20], area=600, iscrowd=0)
            for i in files
        ],
    )
    (tmp_path / 'annotations').mkdir()
    for split in ('train', 'val'):
        (tmp_path / f'annotations/zhiyuan_objv2_{split}.json').write_text(json.dumps(data))
        for image_id in (5, 9):
            path = tmp_path / split / '/'.join(files[image_id].split('/')[-2:])
            path.parent.mkdir(parents=True)
            cv2.imwrite(str(path), np.full((60, 80, 3), 128, np.uint8))
    return tmp_path


def build(root, split):
    cfg = load_config('objects365/eva_cascade')[f'{split}_dataloader'].dataset
    cfg.data_root = f'{root}/'
    return DATASETS.build(cfg)


def test_training_reads_boxes_and_leaves_out_what_is_not_released(root):
    dataset = build(root, 'train')
    assert dataset.metainfo['classes'] == ('Person', 'Sneakers')
    assert [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))] == [5, 9]
    np.random.seed(0)
    instances = [dataset[i]['data_samples'].gt_instances for i in range(len(dataset))]
    assert all(found.labels.tolist() == [1] for found in instances)
    assert all('masks' not in found for found in instances)


def test_a_test_set_keeps_every_image(root):
    assert len(build(root, 'val')) == 3
