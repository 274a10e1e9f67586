"""What is counted as a confusion, and what is not."""

import json
import runpy

import cv2
import numpy as np
import pytest

from eva_mm.detection.confusion import Confusions, count_confusions, draw_confusions
from eva_mm.errors import InputError

from ..helpers import ROOT

CAT, DOG, COW = 3, 7, 9
BOX, FAR, CROWD = [0, 0, 20, 20], [60, 60, 20, 20], [20, 60, 30, 30]


def write(folder, annotations, results, dog='dog', **image):
    """Files of one image; annotations and results are tuples of their values."""
    image = dict(id=5, width=100, height=100, **image)
    truth = [
        dict(id=i, image_id=5, category_id=c, bbox=b, area=b[2] * b[3], iscrowd=crowd)
        for i, (c, b, crowd) in enumerate(annotations, start=1)
    ]
    found = [dict(image_id=5, category_id=c, bbox=b, score=s) for c, b, s in results]
    # Not in the order of ids, which that of the rows is.
    categories = [
        dict(id=i, name=n, frequency='f') for i, n in ((DOG, dog), (COW, 'cow'), (CAT, 'cat'))
    ]
    data = dict(images=[image], annotations=truth, categories=categories)
    (folder / 'truth.json').write_text(json.dumps(data))
    (folder / 'found.json').write_text(json.dumps(found))
    return str(folder / 'truth.json'), str(folder / 'found.json')


def cells(confusions) -> dict:
    names = [*confusions.names, None]
    counts = {(names[r], names[c]): int(n) for (r, c), n in np.ndenumerate(confusions.counts)}
    return {cell: n for cell, n in counts.items() if n}


def test_each_kind_of_error_has_its_cell(tmp_path):
    found = count_confusions(
        *write(
            tmp_path,
            [(CAT, BOX, 0), (DOG, FAR, 0)],
            [
                (DOG, [1, 0, 20, 20], 0.9),  # takes the cat
                (CAT, BOX, 0.8),  # finds it taken
                (DOG, FAR, 0.2),  # below the threshold
                (COW, [60, 68, 20, 20], 0.9),  # overlaps by 0.43
            ],
        )
    )
    assert found.names == ['cat', 'dog', 'cow']
    assert cells(found) == {
        ('cat', 'dog'): 1,
        (None, 'cat'): 1,
        (None, 'cow'): 1,
        ('dog', None): 1,
    }
    assert found.worst(5) == [('cat', 'dog', 1, 1.0)]


def test_thresholds_count(tmp_path):
    files = write(tmp_path, [(DOG, FAR, 0)], [(DOG, [60, 68, 20, 20], 0.2)])
    assert cells(count_confusions(*files)) == {('dog', None): 1}
    assert cells(count_confusions(*files, score_thr=0.1, iou_thr=0.4)) == {('dog', 'dog'): 1}


def test_crowds_are_neither_missed_nor_false(tmp_path):
    inside = [(DOG, [22, 62, 5, 5], 0.9), (DOG, [40, 70, 5, 5], 0.9)]
    assert cells(count_confusions(*write(tmp_path, [(DOG, CROWD, 1)], inside))) == {}


@pytest.mark.parametrize(
    ('listed', 'counted'),
    [
        (dict(neg_category_ids=[], not_exhaustive_category_ids=[]), 0),
        (dict(neg_category_ids=[DOG], not_exhaustive_category_ids=[]), 1),
        (dict(neg_category_ids=[DOG], not_exhaustive_category_ids=[DOG]), 0),
    ],
)
def test_lvis_counts_only_what_was_judged(tmp_path, listed, counted):
    files = write(tmp_path, [(CAT, BOX, 0)], [(CAT, BOX, 0.9), (DOG, FAR, 0.9)], **listed)
    assert cells(count_confusions(*files)).pop((None, 'dog'), 0) == counted


PERSON, JERSEY = (DOG, [0, 0, 20, 25], 0.9), (CAT, BOX, 0.8)


@pytest.mark.parametrize('not_exhaustive', [[], [DOG]])
def test_what_was_not_judged_takes_nothing_of_others(tmp_path, not_exhaustive):
    listed = dict(neg_category_ids=not_exhaustive, not_exhaustive_category_ids=not_exhaustive)
    files = write(tmp_path, [(CAT, BOX, 0)], [PERSON, JERSEY], **listed)
    assert cells(count_confusions(*files)) == {('cat', 'cat'): 1}


def test_what_is_not_exhaustive_takes_its_own(tmp_path):
    listed = dict(neg_category_ids=[], not_exhaustive_category_ids=[DOG])
    truth = [(CAT, [0, 0, 20, 25], 0), (DOG, BOX, 0)]
    files = write(tmp_path, truth, [PERSON, PERSON, JERSEY], **listed)
    assert cells(count_confusions(*files)) == {('cat', 'cat'): 1, ('dog', 'dog'): 1}


def test_negative_categories_are_judged(tmp_path):
    listed = dict(neg_category_ids=[DOG], not_exhaustive_category_ids=[])
    files = write(tmp_path, [(CAT, BOX, 0)], [PERSON, JERSEY], **listed)
    assert cells(count_confusions(*files)) == {('cat', 'dog'): 1, (None, 'cat'): 1}


def test_dollar_signs_in_names_are_no_formula(tmp_path):
    files = write(tmp_path, [(CAT, BOX, 0)], [(DOG, BOX, 0.9)], dog='a $^$ b')
    assert draw_confusions(count_confusions(*files), tmp_path / 'c.png').stat().st_size


def test_the_most_confused_are_drawn(tmp_path):
    counts = np.diag([50] * 40)
    counts[3, 8] = 9
    counts[20, 8] = 4
    confusions = Confusions([f'c{i}' for i in range(39)], counts, counts.sum(1))
    assert confusions.worst(1) == [('c3', 'c8', 9, 9 / 59)]
    kept = confusions.most_confused(3)
    assert kept.names == ['c3', 'c8', 'c20']
    assert cells(kept)['c20', 'c8'] == 4
    small, large = (draw_confusions(confusions, tmp_path / f'{n}.png', n) for n in (3, 30))
    assert cv2.imread(str(small)).shape[0] < cv2.imread(str(large)).shape[0]


def test_categories_of_one_name_stay_two(tmp_path):
    counts = np.array([[3, 1, 0], [5, 5, 0], [0, 0, 0]])
    confusions = Confusions(['bat', 'bat'], counts, counts.sum(1))
    assert confusions.worst(2) == [('bat', 'bat', 5, 5 / 10), ('bat', 'bat', 1, 1 / 4)]
    assert list(confusions.most_confused(2).totals) == [4, 10, 0]
    assert draw_confusions(confusions, tmp_path / 'two.png').stat().st_size


def test_no_annotations_and_no_results(tmp_path):
    found = count_confusions(*write(tmp_path, [], []))
    assert cells(found) == {}
    assert found.worst(3) == []
    assert draw_confusions(found, tmp_path / 'empty.png').stat().st_size


def test_the_tool_tells_and_draws(tmp_path, capsys):
    files = write(tmp_path, [(CAT, BOX, 0)], [(DOG, BOX, 0.9)])
    main = runpy.run_path(str(ROOT / 'tools' / 'look.py'))['main']
    main(['confusion', *files, '--out', str(tmp_path / 'c.png')])
    assert '100.0 % of cat taken for dog' in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / 'c.png')) is not None
    with pytest.raises(SystemExit, match='^look.py: .*gone.json'):
        main(['confusion', files[0], 'gone.json', '--out', str(tmp_path / 'd.png')])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(category_id=55), 'truth.json: annotation id=1: category 55 is not listed'),
        (dict(image_id=55), 'truth.json: annotation id=1: image 55 is not listed'),
        (dict(bbox=[1, 2, 3]), r'truth.json: annotation id=1: bbox should .* found \[1, 2, 3\]'),
        (dict(bbox=None), 'truth.json: annotation id=1: bbox should be'),
        (None, r"truth.json: annotations\[0\] \(id=1\) has no 'bbox'"),
    ],
)
def test_annotations_that_cannot_be_matched_are_told(tmp_path, change, message):
    truth, found = write(tmp_path, [(CAT, BOX, 0)], [(CAT, BOX, 0.9)])
    data = json.loads((tmp_path / 'truth.json').read_text())
    (entry,) = data['annotations']
    if change:
        entry.update(change)
    else:
        del entry['bbox']
    (tmp_path / 'truth.json').write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        count_confusions(truth, found)


def test_results_without_boxes_are_refused(tmp_path):
    truth, found = write(tmp_path, [], [])
    runs = dict(size=[100, 100], counts='PPYo1')
    record = dict(image_id=5, category_id=CAT, score=0.5, segmentation=runs)
    (tmp_path / 'found.json').write_text(json.dumps([record]))
    with pytest.raises(InputError, match='expected a bbox'):
        count_confusions(truth, found)
