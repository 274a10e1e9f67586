"""Images ranked by their own AP."""

import json
import runpy

import cv2
import numpy as np
import pytest

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


def test_masks_need_masks(tmp_path):
    with pytest.raises(InputError, match='expected a segmentation'):
        rank_images(*write(tmp_path, FOUND), iou_type='segm')


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
