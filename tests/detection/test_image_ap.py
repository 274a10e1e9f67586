"""Images ranked by their own AP."""

import json
import runpy

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from eva_mm.detection.image_ap import rank_images
from eva_mm.errors import InputError

from ..helpers import ROOT

BOX = [10, 10, 40, 40]
NEAR = [10, 14, 40, 40]  # overlaps BOX by 0.82: counts at 7 of the 10 thresholds


def write(folder, found, lvis=None):
    """Images 1 to 4 of which the last shows nothing; results as (image, category, box, score)."""
    images = [
        dict(id=i, width=64, height=64, file_name=f'{i}.png', **(lvis or {})) for i in range(1, 5)
    ]
    truth = [
        dict(id=n, image_id=i, category_id=c, bbox=BOX, area=1600, iscrowd=0)
        for n, (i, c) in enumerate([(1, 3), (2, 3), (3, 3), (3, 7)], start=1)
    ]
    categories = [dict(id=i, name=n, frequency='f') for i, n in ((3, 'cat'), (7, 'dog'))]
    data = dict(images=images, annotations=truth, categories=categories)
    (folder / 'truth.json').write_text(json.dumps(data))
    results = [dict(image_id=i, category_id=c, bbox=b, score=s) for i, c, b, s in found]
    (folder / 'found.json').write_text(json.dumps(results))
    for image in images:
        cv2.imwrite(str(folder / image['file_name']), np.full((64, 64, 3), 90, np.uint8))
    return str(folder / 'truth.json'), str(folder / 'found.json')


FOUND = [(1, 3, BOX, 0.9), (2, 3, NEAR, 0.9), (3, 3, BOX, 0.8), (4, 3, BOX, 0.9)]


def test_worst_come_first_and_unannotated_images_have_none(tmp_path):
    ranked = rank_images(*write(tmp_path, FOUND))
    assert [image for image, _ in ranked] == [3, 2, 1]
    assert [value for _, value in ranked] == pytest.approx([0.5, 0.7, 1.0])


@pytest.mark.parametrize(('exhaustive', 'expected'), [(True, 0.5), (False, 1.0)])
def test_lvis_ignores_more_of_what_is_not_exhaustively_annotated(tmp_path, exhaustive, expected):
    listed = dict(neg_category_ids=[], not_exhaustive_category_ids=[] if exhaustive else [3])
    false_alarm = (1, 3, [0, 0, 5, 5], 0.95)
    assert dict(rank_images(*write(tmp_path, [*FOUND, false_alarm], listed)))[1] == pytest.approx(
        expected
    )


@pytest.mark.parametrize(('lvis', 'expected'), [(False, 0.0), (True, 1 / 151)])
def test_as_many_detections_count_as_in_the_benchmark(tmp_path, lvis, expected):
    listed = dict(neg_category_ids=[], not_exhaustive_category_ids=[]) if lvis else None
    wrong = [(1, 3, [0, 0, 5, 5], 0.9)] * 150
    ranked = dict(rank_images(*write(tmp_path, [*wrong, (1, 3, BOX, 0.1)], listed)))
    assert ranked[1] == pytest.approx(expected)


@pytest.mark.parametrize('change', [dict(ignore=1), dict(area=0)])
def test_images_whose_objects_do_not_count_are_left_out(tmp_path, change):
    files = write(tmp_path, FOUND, dict(neg_category_ids=[], not_exhaustive_category_ids=[]))
    data = json.loads((tmp_path / 'truth.json').read_text())
    data['annotations'][1].update(change)
    (tmp_path / 'truth.json').write_text(json.dumps(data))
    assert [image for image, _ in rank_images(*files)] == [3, 1]
    for entry in data['annotations']:
        entry.update(change)
    (tmp_path / 'truth.json').write_text(json.dumps(data))
    with pytest.raises(InputError, match='truth.json: no image has an object that counts'):
        rank_images(*files)


def rank_masks(folder, annotated, found):
    """One image of 10 x 10 pixels; masks of its annotation and its result."""
    truth = dict(id=6, image_id=1, category_id=1, area=16, bbox=[1, 1, 4, 4], iscrowd=0)
    truth['segmentation'] = annotated
    data = dict(images=[dict(id=1, width=10, height=10)], categories=[dict(id=1, name='a')])
    (folder / 'truth.json').write_text(json.dumps(dict(data, annotations=[truth])))
    mask = dict(size=[10, 10], counts=found)
    result = dict(image_id=1, category_id=1, score=0.9, segmentation=mask)
    (folder / 'found.json').write_text(json.dumps([result]))
    return rank_images(str(folder / 'truth.json'), str(folder / 'found.json'), 'segm')


def runs(counts, side=10):
    return dict(size=[side, side], counts=counts)


ALL = mask_utils.frPyObjects(runs([0, 100]), 10, 10)['counts'].decode()


@pytest.mark.parametrize('good', [runs([0, 100]), runs(ALL), [[0, 0, 10, 0, 10, 10, 0, 10]]])
def test_masks_in_each_form(tmp_path, good):
    assert rank_masks(tmp_path, good, ALL) == [(1, pytest.approx(1.0))]


@pytest.mark.parametrize(
    'wrong',
    [
        *(runs([10, 10]), runs([-5, 105]), runs([]), runs('PP'), runs(7), runs([0, 25], 5)),
        *(dict(counts=[0, 100]), dict(size=[10, 10]), [], [[]], [['a'] * 6], None, 3),
    ],
)
def test_annotated_masks_that_are_none_are_told(tmp_path, wrong):
    with pytest.raises(InputError, match='truth.json: annotation id=6: segmentation should be'):
        rank_masks(tmp_path, wrong, ALL)


@pytest.mark.parametrize('wrong', ['PP', 'zzzz~~'])
def test_masks_of_results_that_are_none_are_told(tmp_path, wrong):
    with pytest.raises(InputError, match=r'found.json: image 1: RLE'):
        rank_masks(tmp_path, runs([0, 100]), wrong)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(category_id=55), 'annotation id=1: category 55 is not listed'),
        (dict(bbox='1234'), 'annotation id=1: bbox should be'),
        (None, r"annotations\[0\] \(id=1\) has no 'bbox'"),
    ],
)
def test_annotations_that_cannot_be_compared_are_told(tmp_path, change, message):
    files = write(tmp_path, FOUND)
    data = json.loads((tmp_path / 'truth.json').read_text())
    if change:
        data['annotations'][0].update(change)
    else:
        del data['annotations'][0]['bbox']
    (tmp_path / 'truth.json').write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        rank_images(*files)


def test_masks_need_masks(tmp_path):
    with pytest.raises(InputError, match="has no 'segmentation'"):
        rank_images(*write(tmp_path, FOUND), iou_type='segm')
    boxes = write(tmp_path, FOUND)[1]
    data = json.loads((tmp_path / 'truth.json').read_text())
    for entry in data['annotations']:
        entry['segmentation'] = [[10, 10, 50, 10, 50, 50, 10, 50]]
    (tmp_path / 'truth.json').write_text(json.dumps(data))
    with pytest.raises(InputError, match='found.json: expected a segmentation'):
        rank_images(str(tmp_path / 'truth.json'), boxes, iou_type='segm')


def test_the_tool_draws_both_ends(tmp_path, capsys):
    files = write(tmp_path, FOUND)
    main = runpy.run_path(str(ROOT / 'tools' / 'look.py'))['main']
    out = tmp_path / 'pictures'
    main(['images', *files, '--images', str(tmp_path), '--out-dir', str(out), '--num-images', '1'])
    told = capsys.readouterr().out
    assert 'worst  3: 0.500\n' in told
    assert 'best  1: 1.000\n' in told
    worst, best = (cv2.imread(str(out / f'{name}.png')) for name in ('worst', 'best'))
    assert worst.shape == best.shape
    assert (worst != best).any()
    with pytest.raises(SystemExit, match=r'^look\.py: image 3 .* is not in .*nowhere, expected'):
        main(['images', *files, '--images', str(tmp_path / 'nowhere'), '--out-dir', str(out)])
