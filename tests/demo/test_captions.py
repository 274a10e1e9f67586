"""Generated image-text pairs, checked from their files alone."""

import csv
import re

import cv2
import numpy as np
import pytest

from eva_mm.demo import generate_captions
from eva_mm.demo.captions import describe
from eva_mm.demo.catalogue import CATEGORIES
from tests.demo.test_generate import HUES, tree_digest

NAMES = [category.name for category in CATEGORIES]


def rows_of(root, split):
    with open(root / f'{split}.csv', newline='') as file:
        return list(csv.DictReader(file, delimiter='\t'))


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return generate_captions(tmp_path_factory.mktemp('captions') / 'set', 60, 12)


def test_every_line_names_an_image_and_every_image_has_a_line(root):
    for split, count in (('train', 60), ('val', 12)):
        rows = rows_of(root, split)
        assert len(rows) == count
        assert {row['filepath'] for row in rows} == {
            path.relative_to(root).as_posix() for path in (root / split).iterdir()
        }
        for row in rows:
            assert cv2.imread(str(root / row['filepath'])).shape == (96, 96, 3)
    assert (root / 'train.csv').read_text().splitlines()[0] == 'filepath\ttitle'


@pytest.mark.parametrize(
    ('names', 'words'),
    [
        (['blue_square'], 'a blue square'),
        (['orange_heart'], 'an orange heart'),
        (['white_cross'] * 2, 'two white crosses'),
        (['red_white_star', 'red_disc'], 'a star with red and white stripes and a red disc'),
        (
            ['red_disc', 'green_black_heart', 'red_disc', 'red_cyan_disc'],
            'two red discs, a heart with green and black checks and a red disc with cyan core',
        ),
        (['purple_white_cross'] * 3, 'three purple crosses with white dots'),
    ],
)
def test_descriptions_read_as_sentences(names, words):
    assert describe([NAMES.index(name) for name in names]) == words


def test_no_two_categories_share_a_description():
    assert len({describe([index]) for index in range(len(CATEGORIES))}) == len(CATEGORIES)


def coloured_share(path, hues) -> float:
    hsv = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2HSV)
    hue, saturation, value = np.moveaxis(hsv, -1, 0)
    # Dark pixels beside black ones have any hue after JPEG.
    return float(((hue >= hues[0]) & (hue <= hues[1]) & (saturation > 120) & (value > 110)).mean())


def test_captions_tell_the_truth_about_colours(root):
    """A colour is on the picture exactly when the caption names it."""
    checked = 0
    for split in ('train', 'val'):
        for row in rows_of(root, split):
            words = set(re.findall(r'\w+', row['title']))
            for colour in ('blue', 'green'):
                share = coloured_share(root / row['filepath'], HUES[colour])
                assert (share > 0.001) == (colour in words), (row, colour, share)
                checked += colour in words
    assert checked > 30


def test_same_arguments_same_bytes(root, tmp_path):
    assert tree_digest(generate_captions(tmp_path / 'again', 60, 12)) == tree_digest(root)
    other = generate_captions(tmp_path / 'other', 60, 12, seed=1)
    assert (other / 'train.csv').read_bytes() != (root / 'train.csv').read_bytes()
    assert set(tree_digest(root).values()).isdisjoint(
        digest for name, digest in tree_digest(other).items() if name.endswith('.jpg')
    )


def test_more_pairs_begin_with_the_same_ones(root, tmp_path):
    longer = generate_captions(tmp_path / 'longer', 61, 12)
    assert rows_of(longer, 'train')[:60] == rows_of(root, 'train')
    assert tree_digest(longer)['train/000059.jpg'] == tree_digest(root)['train/000059.jpg']


@pytest.mark.parametrize('victim', ['train.csv', 'val/000011.jpg', 'demo_stamp.json'])
def test_a_damaged_set_is_made_again(tmp_path, victim):
    root = generate_captions(tmp_path / 'set', 3, 12, 64)
    whole = tree_digest(root)
    (root / victim).write_bytes((root / victim).read_bytes()[:-5])
    generate_captions(root, 3, 12, 64)
    assert tree_digest(root) == whole


def test_a_complete_set_is_left_alone(tmp_path):
    root = generate_captions(tmp_path / 'set', 3, 2, 64)
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    generate_captions(root, 3, 2, 64)
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


def test_foreign_files_are_never_touched(tmp_path):
    (tmp_path / 'train.csv').write_text('mine')
    with pytest.raises(FileExistsError, match='did not write .such as train.csv'):
        generate_captions(tmp_path, 3, 2, 64)
    assert (tmp_path / 'train.csv').read_text() == 'mine'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(num_train=0), 'num_train is 0, expected at least 1'),
        (dict(size=32), 'size is 32, expected sides of at least 64'),
        (dict(seed=-1), 'seed is -1, expected a non-negative'),
    ],
)
def test_impossible_requests_name_the_argument(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        generate_captions(tmp_path / 'set', **{'num_train': 2, 'num_val': 2, **change})
    assert not (tmp_path / 'set').exists()
