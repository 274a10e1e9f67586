"""Lists of images and data sets over them: order, memory, bad input, replacement."""

import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from eva_mm.engine.exact_data import ExactInfiniteSampler, PositionedIndex
from eva_mm.engine.image_data import (
    ImageDataset,
    PathList,
    list_images,
    open_rgb,
    read_file_list,
    write_file_list,
)
from eva_mm.engine.unreadable import BrokenImageError, MissingImageError
from eva_mm.errors import InputError, MissingFileError, UnreadableFileError
from tests.helpers import ROOT


def save_image(path, value=0, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, (value, value, value)).save(path)


@pytest.fixture
def tree(tmp_path):
    """Six images; their red value is their place in the list."""
    root = tmp_path / 'images'
    names = ['a/1.JPG', 'a/deep/er/2.png', 'a/x.jpeg', 'b/Ä 1.bmp', 'b.jpg', 'c.webp']
    for value, name in enumerate(names):
        save_image(root / name, value)
    (root / 'a' / 'notes.txt').write_text('no image')
    save_image(root / '.hidden' / 'x.jpg')
    save_image(root / 'a' / '.x.jpg')
    return root, names


def red(sample):
    """Pipeline: the sample's path and its first red value."""
    return dict(img_path=sample['img_path'], red=sample['image'].getpixel((0, 0))[0])


def listed(images):
    return [images.relative(i) for i in range(len(images))]


# ------------------------------------------------------------------------------------------ listing


def test_a_folder_is_listed_at_any_depth_in_order_without_what_is_hidden(tree):
    root, names = tree
    images = list_images(root)
    assert listed(images) == names
    assert images[2] == str(root / 'a' / 'x.jpeg')
    assert list(images) == [str(root / name) for name in names]
    assert images.labels is None


def test_the_order_is_that_of_torchvision_for_class_folders(tmp_path):
    for name in ('n2/b.jpg', 'n10/c.jpg', 'n10/B.jpg', 'n1/deep/z.jpg', 'n1/a.jpg'):
        save_image(tmp_path / name)
    reference = [path for path, _ in ImageFolder(tmp_path).samples]
    assert sorted(list_images(tmp_path)) == sorted(reference)
    flat = [path for path in reference if 'deep' not in path]
    assert [path for path in list_images(tmp_path) if 'deep' not in path] == flat


def test_links_are_followed_but_not_in_a_circle(tree, tmp_path):
    root, names = tree
    other = tmp_path / 'other'
    other.mkdir()
    (other / 'linked').symlink_to(root, target_is_directory=True)
    (root / 'a' / 'up').symlink_to(root, target_is_directory=True)
    (other / 'gone.jpg').symlink_to(tmp_path / 'nowhere.jpg')
    found = listed(list_images(other))
    assert found == ['gone.jpg', *(f'linked/{name}' for name in names)]
    with pytest.raises(MissingImageError, match='gone.jpg'):
        ImageDataset(str(other))[0]


def test_paths_take_no_more_than_their_names_and_a_number_each():
    names = b''.join(b'cc12m/%05d/%09d.jpg\n' % (i // 1000, i) for i in range(300_000))
    images = PathList('root', names)
    assert images[299_999] == 'root/cc12m/00299/000299999.jpg'
    size = len(pickle.dumps(images))
    assert size < len(names) + 8 * len(images) + 1000


def test_bytes_that_are_no_text_are_names_as_well(tmp_path):
    Image.new('RGB', (4, 4)).save(os.fsencode(tmp_path) + b'/\xff.jpg', format='jpeg')
    images = list_images(tmp_path)
    write_file_list(images, tmp_path / 'list.txt')
    assert open_rgb(read_file_list(tmp_path / 'list.txt', tmp_path)[0]).size == (4, 4)


def test_the_digest_follows_names_and_order_alone(tree, tmp_path):
    root, _ = tree
    before = ImageDataset(str(root)).digest()
    moved = root.rename(tmp_path / 'elsewhere')
    assert ImageDataset(str(moved)).digest() == before
    (moved / 'b.jpg').rename(moved / 'b0.jpg')
    assert ImageDataset(str(moved)).digest() != before


@pytest.mark.parametrize('kind', ['missing', 'file', 'empty'])
def test_a_root_without_images_is_named(tmp_path, kind):
    root = tmp_path / 'root'
    if kind == 'file':
        root.write_text('')
    elif kind == 'empty':
        (root / 'a').mkdir(parents=True)
        (root / 'a' / 'readme.txt').write_text('')
    expected = InputError if kind == 'empty' else MissingFileError
    text = {'missing': 'not found', 'file': 'is a file', 'empty': r'no image .*\.jpg, \.jpeg'}
    with pytest.raises(expected, match=text[kind]) as caught:
        ImageDataset(str(root))
    assert str(root) in str(caught.value)


def test_a_line_break_in_a_name_is_an_error(tmp_path):
    save_image(tmp_path / 'a\nb.jpg')
    with pytest.raises(InputError, match=r"line break .*'a\\nb.jpg'"):
        list_images(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tree, monkeypatch):
    root, _ = tree
    scan = os.scandir

    def refuse(folder):
        if os.fsencode(folder).endswith(b'deep'):
            raise PermissionError(13, 'Permission denied')
        return scan(folder)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(UnreadableFileError, match='cannot list folder .*a/deep: .*denied'):
        list_images(root)


# --------------------------------------------------------------------------------------- file lists


def test_a_written_list_reads_as_it_was(tree, tmp_path):
    root, names = tree
    images = list_images(root)
    write_file_list(images, tmp_path / 'list.txt')
    again = read_file_list(tmp_path / 'list.txt', root)
    assert listed(again) == names
    assert again.digest() == images.digest()
    labelled = PathList(images.root, images.names, np.arange(6) - 1)
    write_file_list(labelled, tmp_path / 'list.txt')
    again = read_file_list(tmp_path / 'list.txt', root)
    assert listed(again) == names
    assert again.labels.tolist() == [-1, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ('text', 'paths', 'labels'),
    [
        ('a 1.jpg\nb.jpg', ['a 1.jpg', 'b.jpg'], None),
        ('\ufeffa.jpg  \r\n\r\n\r\n/b/c.jpg\r\n', ['a.jpg', '/b/c.jpg'], None),
        ('a 1.jpg 7\nb.jpg\t12\n\nc.jpg   0 ', ['a 1.jpg', 'b.jpg', 'c.jpg'], [7, 12, 0]),
        (' a.jpg\nb.jpg\n', [' a.jpg', 'b.jpg'], None),
        ('a.jpg copy.jpg\nb.jpg,c.PNG', ['a.jpg copy.jpg', 'b.jpg,c.PNG'], None),
        ('a.jpg copy.jpg 3\nno_suffix 1\n', ['a.jpg copy.jpg', 'no_suffix'], [3, 1]),
    ],
)
def test_forms_of_a_list(tmp_path, text, paths, labels):
    (tmp_path / 'list.txt').write_text(text, newline='')
    images = read_file_list(tmp_path / 'list.txt', 'root')
    assert listed(images) == paths
    assert list(images) == [os.path.join('root', path) for path in paths]
    assert images.labels is labels if labels is None else images.labels.tolist() == labels


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        (b' \r\n\n', 'file list is empty: .*list.txt'),
        (b'a.jpg 1\n\nb.jpg 2\nc.jpg\nd.jpg 1', r"3 of 4 .*first line has one, line 3 .*'c\.jpg'"),
        (b'a.jpg\nb.jpg 2\n', r"1 of 2 lines .*first line has none, line 2 .*'b\.jpg 2'"),
        (b'PK\x00\x00', 'list.txt is not text'),
        (b'a.jpg 1\nb.jpg 99999999999999999999\n', r'label 9{20} in line 2 .*too large'),
        (b'a.jpg\n\nb 1.JPG,1\n', r"line 2 .*whole number, found 'b 1\.JPG,1'"),
        (b'a.png 1.0\nb.png 2.0\n', r"line 1 .*found 'a\.png 1\.0'"),
        (b'a.png x 1\nb.png 1\n', r"line 1 .*found 'a\.png x'"),
    ],
)
def test_wrong_lists_are_told(tmp_path, text, match):
    (tmp_path / 'list.txt').write_bytes(text)
    with pytest.raises(InputError, match=match):
        read_file_list(tmp_path / 'list.txt', 'root')


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(MissingFileError, match='file list not found: .*list.txt'):
        ImageDataset(str(tmp_path), 'list.txt')


def test_the_tool_writes_a_list_that_a_data_set_takes(tree, tmp_path):
    root, names = tree
    command = [sys.executable, ROOT / 'tools' / 'list_images.py']
    done = subprocess.run(
        [*command, root, '--out', 'lists/all.txt'], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 'lists/all.txt: 6 images' in done.stdout
    out = tmp_path / 'lists' / 'all.txt'
    assert str(out) in done.stdout
    assert listed(ImageDataset(str(root), str(out)).lists[0]) == names
    done = subprocess.run(
        [*command, tmp_path / 'gone', '--out', out], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith('list_images.py: image folder not found')
    assert len(out.read_text().splitlines()) == 6, 'an error leaves the old list alone'


# ----------------------------------------------------------------------------------------- data set


def test_several_roots_are_one_data_set(tree, tmp_path):
    root, names = tree
    save_image(tmp_path / 'more' / 'last.png', 200)
    (tmp_path / 'more' / 'list.txt').write_text('last.png 5\nlast.png 6')
    dataset = ImageDataset([str(root), str(tmp_path / 'more')], ['', 'list.txt'], [red])
    assert len(dataset) == 8
    assert [dataset[i]['red'] for i in range(8) if i not in (0, 2, 5)] == [1, 3, 4, 200, 200]
    assert [dataset.get_data_info(i).get('label') for i in range(8)] == [None] * 6 + [5, 6]
    assert dataset.get_data_info(7)['img_path'] == str(tmp_path / 'more' / 'last.png')
    for index in (-1, 8):
        with pytest.raises(IndexError):
            dataset.get_data_info(index)
    with pytest.raises(InputError, match='names 1 file lists for 2 folders'):
        ImageDataset([str(root), str(root)], 'list.txt')


def test_images_are_opened_as_torchvision_does(tmp_path):
    """Also palettes, transparency and EXIF orientation, which is left unapplied."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    image = Image.fromarray(noise, 'RGBA')
    (tmp_path / 'c').mkdir()
    image.save(tmp_path / 'c' / 'rgba.png')
    image.convert('P').save(tmp_path / 'c' / 'palette.png', transparency=3)
    image.convert('L').save(tmp_path / 'c' / 'gray.jpg')
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert('RGB').save(tmp_path / 'c' / 'turned.jpg', exif=exif)
    image.convert('CMYK').save(tmp_path / 'c' / 'cmyk.jpg')
    reference = ImageFolder(tmp_path)
    assert len(reference) == 5
    for path, _ in reference.samples:
        ours, theirs = open_rgb(path), reference.loader(path)
        assert (ours.mode, ours.size) == ('RGB', (7, 9))
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def damage(path, how):
    if how == 'missing':
        path.unlink()
    elif how == 'empty':
        path.write_bytes(b'')
    elif how == 'text':
        path.write_text('<html>not found</html>')
    elif how == 'truncated':
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.webp'])
@pytest.mark.parametrize('how', ['missing', 'empty', 'text', 'truncated'])
def test_an_unreadable_image_is_named(tmp_path, how, suffix):
    path = tmp_path / f'x{suffix}'
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    dataset = ImageDataset(str(tmp_path), skip_unreadable=True, test_mode=True)
    damage(path, how)
    with pytest.raises(MissingImageError if how == 'missing' else BrokenImageError) as caught:
        dataset[0]
    assert str(path) in str(caught.value)
    assert dataset.num_replaced == 0


def broken_set(tmp_path, size=12, broken=(1, 4, 5), **options):
    for value in range(size):
        save_image(tmp_path / f'{value:03d}.png', value)
    for value in broken:
        damage(tmp_path / f'{value:03d}.png', 'text')
    return ImageDataset(str(tmp_path), pipeline=[red], skip_unreadable=True, **options)


def test_another_image_stands_in_and_is_counted_also_in_workers(tmp_path):
    """The same ones in any number of workers, as they are seeded by the position."""
    rounds = []
    for workers in (0, 2):
        dataset = broken_set(tmp_path)
        sampler = ExactInfiniteSampler(dataset, shuffle=False, seed=3)
        loader = iter(DataLoader(dataset, 4, sampler=sampler, num_workers=workers))
        rounds.append([next(loader)['red'].tolist() for _ in range(6)])
        # At least: a substitute may be unreadable too, and workers load ahead.
        assert dataset.num_replaced >= 6
    assert rounds[0] == rounds[1]
    first, second = sum(rounds[0][:3], []), sum(rounds[0][3:], [])
    assert [first[i] for i in range(12) if i not in (1, 4, 5)] == [0, 2, 3, 6, 7, 8, 9, 10, 11]
    assert all(first[i] not in (1, 4, 5) for i in (1, 4, 5))
    assert [first[i] for i in (1, 4, 5)] != [second[i] for i in (1, 4, 5)], 'chosen at random'


def test_the_choice_leaves_the_generators_alone(tmp_path):
    dataset = broken_set(tmp_path)
    random.seed(5)
    expected = random.getstate()
    dataset[PositionedIndex(1, position=7, seed=2)]
    assert random.getstate() == expected


def test_nothing_readable_ends(tmp_path):
    dataset = broken_set(tmp_path, size=3, broken=(0, 1, 2))
    with pytest.raises(UnreadableFileError, match=r'none of the 3 images of .* the last: .*png'):
        dataset[0]
    assert dataset.num_replaced == 3
    assert str(tmp_path) in str(pytest.raises(InputError, dataset.__getitem__, 1).value)


def test_a_batch_and_a_copy_in_another_process(tree):
    root, _ = tree
    dataset = ImageDataset(str(root), pipeline=[red], metainfo=dict(classes=('a',)))
    again = pickle.loads(pickle.dumps(dataset))
    assert again.metainfo == dict(classes=('a',))
    batch = default_collate([again[1], again[3]])
    assert torch.equal(batch['red'], torch.tensor([1, 3]))
    assert batch['img_path'] == [str(root / 'a/deep/er/2.png'), str(root / 'b/Ä 1.bmp')]
