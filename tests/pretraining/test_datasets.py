"""Samples as the model gets them, and views that come back after some epochs."""

import os
import shutil

import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from PIL import Image

from eva_mm.engine import image_data
from eva_mm.engine.exact_data import PositionedIndex
from eva_mm.engine.unreadable import BrokenImageError
from eva_mm.errors import InputError, UsageError
from eva_mm.pretraining.datasets import PretrainingImages

PIPELINE = [
    dict(type='TwoViewCrop', size=28),
    dict(type='BlockMask', grid_size=14, num_masked=80),
    dict(type='MaskNoise', grid_size=14),
    dict(type='PackImage'),
]
SIZE = 6


@pytest.fixture
def root(tmp_path):
    """The layout of the merged data: a sub-folder for each source."""
    rng = np.random.default_rng(0)
    for number in range(SIZE):
        folder = tmp_path / 'data' / ('coco', 'cc3m/00001')[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
    return str(tmp_path / 'data')


def make(root, **options):
    config = dict(type='PretrainingImages', data_root=root, pipeline=PIPELINE, **options)
    return DATASETS.build(config)


def same(one, other):
    assert one.keys() == other.keys()
    return all(
        torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key]
        for key, value in one.items()
    )


def test_a_sample_is_what_the_model_takes(root):
    dataset = make(root)
    assert isinstance(dataset, PretrainingImages)
    assert len(dataset) == SIZE
    assert dataset.num_slots is None
    sample = dataset[PositionedIndex(2, position=0, seed=1)]
    assert sample['image'].dtype == torch.uint8
    assert sample['image'].shape == (3, 28, 28)
    assert sample['mask'].dtype == torch.bool
    assert sample['mask'].shape == sample['noise'].shape == (196,)
    assert sample['img_path'] == f'{root}/cc3m/00001/5.png'
    assert set(sample) == {'image', 'mask', 'noise', 'img_path'}


def test_a_config_makes_a_loader_of_batches(root):
    loader = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='ExactInfiniteSampler'),
        collate_fn=dict(type='default_collate'),
        dataset=dict(type='PretrainingImages', data_root=root, pipeline=PIPELINE, num_views=2),
    )
    batch = next(iter(Runner.build_dataloader(loader, seed=7)))
    assert batch['image'].shape == (4, 3, 28, 28)
    assert batch['mask'].shape == (4, 196)
    assert batch['noise'].dtype == torch.float32
    assert batch['cache_slot'].dtype == torch.int64
    assert len(set(batch['img_path'])) == 4
    assert len({tuple(mask.tolist()) for mask in batch['mask']}) == 4


def test_labels_of_a_list_are_left_out(root, tmp_path):
    (tmp_path / 'list.txt').write_text('coco/0.png 3\ncoco/2.png 4\n')
    dataset = make(root, ann_file=str(tmp_path / 'list.txt'))
    assert set(dataset.get_data_info(1)) == {'img_path'}
    assert set(dataset[1]) == {'image', 'mask', 'noise', 'img_path'}


def test_every_epoch_differs_unless_views_come_back(root):
    dataset = make(root)
    epochs = [dataset[PositionedIndex(3, position=e * SIZE, seed=1)] for e in range(3)]
    assert not same(epochs[0], epochs[1])
    assert not same(epochs[0], epochs[2])


def test_views_come_back_wherever_the_image_stands_in_the_epoch(root):
    dataset = make(root, num_views=2)
    assert dataset.num_slots == 2 * SIZE
    places = [4, SIZE + 1, 2 * SIZE, 3 * SIZE + 5, 4 * SIZE + 2]
    views = [dataset[PositionedIndex(3, position=p, seed=1)] for p in places]
    assert [view['cache_slot'] for view in views] == [6, 7, 6, 7, 6]
    images = [view['image'] for view in views]
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[2], images[4])
    assert torch.equal(images[1], images[3])
    assert not torch.equal(images[0], images[1])
    other = dataset[PositionedIndex(3, position=4, seed=2)]
    assert not torch.equal(images[0], other['image']), 'another run has other views'


def test_masks_differ_though_views_come_back(root):
    dataset = make(root, num_views=1)
    places = [4, 4, SIZE + 4, 2 * SIZE + 4]
    first, again, *later = (dataset[PositionedIndex(3, position=p, seed=1)] for p in places)
    assert same(first, again)
    assert set(first) == {'image', 'mask', 'noise', 'img_path', 'cache_slot'}
    for sample in later:
        assert torch.equal(sample['image'], first['image'])
        for key in ('mask', 'noise'):
            assert not torch.equal(sample[key], first[key]), key


def test_a_substitute_has_no_slot(root, monkeypatch):
    """Its features are another image's; the image may well be readable in the next epoch."""
    dataset = make(root, num_views=1, skip_unreadable=True)
    broken = dataset.get_data_info(3)['img_path']
    with monkeypatch.context() as patch:
        patch.setattr(image_data, 'open_rgb', lambda path: fail_at(broken, path))
        first = dataset[PositionedIndex(3, position=1, seed=1)]
        neighbour = dataset[PositionedIndex(4, position=2, seed=1)]
    assert first['img_path'] != broken
    assert first['cache_slot'] == -1
    assert neighbour['cache_slot'] == 4
    second = dataset[PositionedIndex(3, position=SIZE + 1, seed=1)]
    assert (second['img_path'], second['cache_slot']) == (broken, 3)
    assert dataset.num_replaced == 1


OPEN_RGB = image_data.open_rgb


def fail_at(broken, path):
    if path == broken:
        raise BrokenImageError(f'cannot read image {path}: Input/output error')
    return OPEN_RGB(path)


def test_digest_is_of_folder_and_content(root, tmp_path):
    before = make(root).digest()
    assert make(root).digest() == before
    moved = shutil.copytree(root, tmp_path / 'other')
    assert make(str(moved)).digest() != before, 'another folder'
    path = make(root).get_data_info(SIZE - 1)['img_path']
    with open(path, 'r+b') as file:
        file.seek(-1, os.SEEK_END)
        file.write(b'\x7f')
    changed = make(root).digest()
    assert changed != before, 'another picture of the same name and size'
    os.remove(path)
    os.symlink('nowhere', path)
    assert make(root).digest() not in (before, changed)


def test_slots_are_all_different(root):
    dataset = make(root, num_views=3)
    slots = [
        dataset[PositionedIndex(i, position=e * SIZE + i, seed=0)]['cache_slot']
        for e in range(3)
        for i in range(SIZE)
    ]
    assert sorted(slots) == list(range(3 * SIZE))


def test_views_need_positions_and_a_count(root):
    with pytest.raises(UsageError, match='ExactInfiniteSampler'):
        make(root, num_views=2)[0]
    with pytest.raises(InputError, match='num_views must be at least 1 or None, got 0'):
        make(root, num_views=0)
