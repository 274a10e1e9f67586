"""The generated classification data set, checked from its files alone."""

import cv2
import pytest

from eva_mm.demo import generate_captions, generate_imagenet
from eva_mm.demo.catalogue import CATEGORIES
from tests.demo.test_captions import coloured_share
from tests.demo.test_generate import HUES, run_tool, tree_digest

CLASSES = {category.name for category in CATEGORIES}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return generate_imagenet(tmp_path_factory.mktemp('imagenet') / 'set', 6, 2)


@pytest.mark.parametrize(('split', 'count'), [('train', 6), ('val', 2)])
def test_a_folder_per_class(root, split, count):
    folders = {folder.name: sorted(folder.iterdir()) for folder in (root / split).iterdir()}
    assert set(folders) == CLASSES
    for name, files in folders.items():
        assert [file.name for file in files] == [f'{name}_{i:05d}.jpg' for i in range(count)]
        assert all(cv2.imread(str(file)).shape == (96, 96, 3) for file in files)


def test_torchvision_reads_it(root):
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(root / 'train')
    assert set(dataset.classes) == CLASSES
    assert len(dataset) == 6 * len(CLASSES)


@pytest.mark.parametrize('name', ['blue_square', 'green_triangle', 'yellow_star', 'cyan_crescent'])
def test_the_class_is_what_is_drawn(root, name):
    colour = name.split('_')[0]
    for path in (root / 'train' / name).iterdir():
        assert coloured_share(path, HUES[colour]) > 0.005
    for path in (root / 'train' / 'red_disc').iterdir():
        assert coloured_share(path, HUES[colour]) < 0.001


def test_images_differ_also_from_those_with_captions(root, tmp_path):
    pairs = generate_captions(tmp_path / 'captions', 40, 4)
    pictures = [
        digest
        for folder in (root, pairs)
        for name, digest in tree_digest(folder).items()
        if name.endswith('.jpg')
    ]
    assert len(pictures) == 8 * len(CLASSES) + 44
    assert len(set(pictures)) == len(pictures)


def test_same_arguments_same_bytes_and_more_images_begin_alike(root, tmp_path):
    again = generate_imagenet(tmp_path / 'again', 6, 2)
    assert tree_digest(again) == tree_digest(root)
    more = generate_imagenet(tmp_path / 'more', 7, 2)
    old, new = tree_digest(root), tree_digest(more)
    assert {n: d for n, d in old.items() if n.endswith('.jpg')}.items() <= new.items()
    assert set(
        tree_digest(generate_imagenet(tmp_path / 'other', 6, 2, seed=1)).values()
    ).isdisjoint(digest for name, digest in old.items() if name.endswith('.jpg'))


def test_a_damaged_set_is_made_again(tmp_path):
    root = generate_imagenet(tmp_path / 'set', 1, 1, 64)
    whole = tree_digest(root)
    (root / 'train' / 'red_disc' / 'red_disc_00000.jpg').unlink()
    generate_imagenet(root, 1, 1, 64)
    assert tree_digest(root) == whole


def test_foreign_images_are_never_touched(tmp_path):
    photo = tmp_path / 'train' / 'dogs' / 'a.jpg'
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b'a real photo')
    with pytest.raises(FileExistsError, match='did not write .such as a.jpg'):
        generate_imagenet(tmp_path, 1, 1, 64)
    assert photo.read_bytes() == b'a real photo'


def test_impossible_requests_name_the_argument(tmp_path):
    with pytest.raises(ValueError, match='val_per_class is 0, expected at least 1'):
        generate_imagenet(tmp_path / 'set', 1, 0)
    assert not (tmp_path / 'set').exists()


@pytest.mark.parametrize(
    ('kind', 'counts', 'generate'),
    [
        ('imagenet', ('--train-per-class', '2', '--val-per-class', '1'), generate_imagenet),
        ('captions', ('--num-train', '2', '--num-val', '1'), generate_captions),
    ],
)
def test_command_line(tmp_path, kind, counts, generate):
    out = tmp_path / 'tool'
    done = run_tool(
        'tools/make_demo.py', kind, '--out', str(out), *counts, '--size', '64', '96', '--seed', '3'
    )
    assert done.returncode == 0, done.stderr
    assert tree_digest(out) == tree_digest(generate(tmp_path / 'call', 2, 1, (64, 96), 3))
