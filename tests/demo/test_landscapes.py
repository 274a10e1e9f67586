"""The generated segmentation data set, checked from its files alone."""

import cv2
import numpy as np
import pytest

from eva_mm.demo import generate_ade20k
from eva_mm.demo.landscapes import CLASSES, OTHER
from tests.demo.test_generate import run_tool, tree_digest

PARTS = {'training': 6, 'validation': 3}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return generate_ade20k(tmp_path_factory.mktemp('ade20k') / 'set', 6, 3)


def pairs(root, part):
    for image in sorted((root / 'images' / part).iterdir()):
        label = root / 'annotations' / part / f'{image.stem}.png'
        yield cv2.imread(str(image)), cv2.imread(str(label), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize('part', PARTS)
def test_layout_and_numbers(root, part):
    found = list(pairs(root, part))
    assert len(found) == PARTS[part]
    assert len(list((root / 'annotations' / part).iterdir())) == PARTS[part]
    for image, label in found:
        assert image.shape == (128, 160, 3)
        assert (label.shape, label.dtype) == ((128, 160), np.uint8)
        numbers = set(np.unique(label).tolist())
        assert numbers <= {OTHER, *CLASSES.values()}
        assert CLASSES['sky'] in numbers
        assert len(numbers) >= 3


def test_numbers_are_those_of_ade20k():
    pytest.importorskip('mmseg')
    from mmseg.datasets import ADE20KDataset

    names = ADE20KDataset.METAINFO['classes']
    assert {name: names.index(name) + 1 for name in CLASSES} == CLASSES


def test_the_label_is_what_is_drawn(tmp_path):
    """Each class has its own colour on average, whatever the scene."""
    root = generate_ade20k(tmp_path, 30, 1)
    hues = {'grass': (38, 52), 'sand': (17, 27), 'water': (95, 112), 'tent': (8, 19)}
    seen = set()
    for image, label in pairs(root, 'training'):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        for name, (low, high) in hues.items():
            inside = label == CLASSES[name]
            if inside.sum() > 60:
                assert low <= np.median(hsv[..., 0][inside]) <= high, name
                seen.add(name)
        road = label == CLASSES['road']
        if road.any():
            assert np.median(hsv[..., 2][road]) < 110
        # Sky is above the ground.
        rows = {name: np.flatnonzero((label == CLASSES[name]).any(1)) for name in ('sky', 'road')}
        if len(rows['road']):
            assert rows['sky'].min() < rows['road'].min()
    assert seen == set(hues)


def test_every_class_is_met_and_some_is_left_out(tmp_path):
    root = generate_ade20k(tmp_path, 60, 1)
    images = {name: 0 for name in (*CLASSES, 'other')}
    for _, label in pairs(root, 'training'):
        for name, number in (*CLASSES.items(), ('other', OTHER)):
            images[name] += bool((label == number).any())
    assert min(images.values()) >= 10
    assert images['sky'] == 60


def test_same_arguments_same_bytes_and_more_images_begin_alike(root, tmp_path):
    assert tree_digest(generate_ade20k(tmp_path / 'again', 6, 3)) == tree_digest(root)
    old = {n: d for n, d in tree_digest(root).items() if n.endswith(('.jpg', '.png'))}
    assert old.items() <= tree_digest(generate_ade20k(tmp_path / 'more', 7, 3)).items()
    other = tree_digest(generate_ade20k(tmp_path / 'other', 6, 3, seed=1)).values()
    assert set(other).isdisjoint(old.values())
    assert len(set(old.values())) == len(old)


def test_a_damaged_set_is_made_again(root, tmp_path):
    again = generate_ade20k(tmp_path / 'set', 6, 3)
    (again / 'annotations/training/ADE_train_00000001.png').unlink()
    generate_ade20k(again, 6, 3)
    assert tree_digest(again) == tree_digest(root)


def test_foreign_images_are_never_touched(tmp_path):
    photo = tmp_path / 'images' / 'training' / 'a.jpg'
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b'a real photo')
    with pytest.raises(FileExistsError, match='did not write .such as a.jpg'):
        generate_ade20k(tmp_path, 1, 1)
    assert photo.read_bytes() == b'a real photo'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_val=0), 'num_val is 0, expected at least 1'),
        (dict(size=32), 'expected sides of at least 64'),
        (dict(seed=-1), 'expected a non-negative integer'),
    ],
)
def test_impossible_requests_name_the_argument(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_ade20k(tmp_path / 'set', **arguments)
    assert not (tmp_path / 'set').exists()


def test_command_line(tmp_path):
    counts = ('--num-train', '2', '--num-val', '1', '--seed', '3')
    done = run_tool('tools/make_demo.py', 'ade20k', '--out', str(tmp_path / 'tool'), *counts)
    assert done.returncode == 0, done.stderr
    made = tree_digest(tmp_path / 'tool')
    assert made == tree_digest(generate_ade20k(tmp_path / 'call', 2, 1, seed=3))
