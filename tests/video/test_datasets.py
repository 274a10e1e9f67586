"""Lists of videos, broken ones, and the whole pipelines of a leaf on real clips."""

import errno
import logging
import os

import numpy as np
import pytest
import torch
from mmaction.registry import DATASETS, MODELS
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

import eva_mm
from eva_mm.engine.config_check import check_config
from eva_mm.engine.exact_data import ExactInfiniteSampler, PositionedIndex
from eva_mm.errors import InputError, MissingFileError, UnreadableFileError
from eva_mm.video.datasets import EVAVideoDataset

from ..helpers import ROOT, load_config
from .small import shrink_video, write_video

REAL = ROOT.parent / 'shared' / 'data' / 'video'


@pytest.fixture
def folder(tmp_path):
    """Three videos, one of them cut off, and their list."""
    for index in range(3):
        write_video(tmp_path / 'videos' / f'clip {index}.mp4', 12)
    broken = tmp_path / 'videos' / 'clip 1.mp4'
    broken.write_bytes(broken.read_bytes()[:200])
    lines = [f'clip {index}.mp4 {index}' for index in range(3)]
    (tmp_path / 'list.txt').write_text('\n'.join(lines) + '\n')
    return tmp_path


def dataset(folder, part='train', text=None, **options):
    """Kinetics-400's leaf at test size, on the folder's list."""
    cfg = shrink_video(load_config('kinetics/eva_g_k400', 'mmaction'))
    if text is not None:
        (folder / 'list.txt').write_text(text)
    settings = cfg[f'{part}_dataloader'].dataset
    paths = dict(ann_file=str(folder / 'list.txt'), data_prefix=dict(video=str(folder / 'videos')))
    settings.update({**paths, **options})
    return DATASETS.build(settings)


def test_paths_may_hold_blanks(folder):
    data = dataset(folder)
    assert isinstance(data, EVAVideoDataset)
    assert len(data) == 3
    assert data.get_data_info(2)['filename'] == str(folder / 'videos' / 'clip 2.mp4')
    sample = data[2]
    assert sample['inputs'].shape == (1, 3, 4, 56, 56)
    assert sample['inputs'].dtype == torch.uint8
    assert int(sample['data_samples'].gt_label) == 2


def test_frames_come_in_their_order(folder):
    data = dataset(folder, 'val')
    brightness = data[0]['inputs'][0].float().mean(dim=(0, 2, 3))
    # 12 frames in four segments: 1, 4, 7, 10; frame i is 10 + 10 * i bright.
    np.testing.assert_allclose(brightness, [20, 50, 80, 110], atol=4)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a.mp4 0\nb.mp4\n', r'list.txt, line 2: expected "path label", found .b.mp4'),
        ('a.mp4 -1\n', r'line 1: expected'),
        ('a.mp4 5\n', r'line 1: label 5, expected one below 5'),
        ('\n', 'list of videos is empty'),
    ],
)
def test_bad_lists(folder, text, message):
    with pytest.raises(InputError, match=message):
        dataset(folder, text=text, num_classes=5)


def test_file_names_are_bytes(folder):
    names = ['caf\udce9.mp4', 'two\u2028lines.mp4']
    text = ''.join(f'{name} {label}\n' for label, name in enumerate(names))
    (folder / 'list.txt').write_bytes(text.encode(errors='surrogateescape'))
    data = dataset(folder)
    found = [data.get_data_info(i)['filename'] for i in range(len(data))]
    assert found == [str(folder / 'videos' / name) for name in names]
    write_video(folder / 'plain.mp4').rename(folder / 'videos' / names[0])
    assert data[0]['inputs'].shape == (1, 3, 4, 56, 56)


def test_a_list_is_not_split(folder):
    with pytest.raises(InputError, match='holdout splits the videos of a folder, but .*list.txt'):
        dataset(folder, holdout=dict(part='val', fraction=0.1))


def test_missing_list(folder):
    (folder / 'list.txt').unlink()
    with pytest.raises(MissingFileError, match=r'list of videos not found: .*list.txt'):
        dataset(folder)


def test_broken_video_stops_and_is_named(folder):
    data = dataset(folder, skip_unreadable=False)
    with pytest.raises(UnreadableFileError, match=r'cannot be decoded: .*clip 1.mp4'):
        data[1]
    (folder / 'videos' / 'clip 1.mp4').unlink()
    with pytest.raises(UnreadableFileError, match=r'video not found: .*clip 1.mp4'):
        data[1]


def test_names_of_the_classes(folder):
    assert 'classes' not in dataset(folder).metainfo
    (folder / 'classes.txt').write_text('zumba\narchery\nyoga\n')
    data = dataset(folder)
    # In the order of the labels, whatever it is.
    assert data.metainfo['classes'] == ('zumba', 'archery', 'yoga')
    assert data.label_limit == 3
    assert dataset(folder, classes=['a', 'b', 'c', 'd']).metainfo['classes'] == ('a', 'b', 'c', 'd')
    with pytest.raises(InputError, match='line 3: label 2, expected one below 2'):
        dataset(folder, classes=['a', 'b'])
    with pytest.raises(InputError, match='num_classes is 5, but 3 classes are named'):
        dataset(folder, num_classes=5)
    with pytest.raises(MissingFileError, match=r'class names not found: none.txt'):
        dataset(folder, classes='none.txt')
    for text, found in (('\n', 'none'), ('a\nb\na\n', "'a' twice")):
        (folder / 'classes.txt').write_text(text)
        with pytest.raises(
            InputError, match=f'classes.txt: expected a name per line, found {found}'
        ):
            dataset(folder)


def test_a_folder_does_without_a_list(folder):
    for name in ('zumba', 'archery'):
        write_video(folder / 'videos' / 'train' / name / 'one.mp4')
    cfg = dict(ann_file='', data_prefix=dict(video=str(folder / 'videos' / 'train')))
    data = dataset(folder, **cfg)
    assert data.metainfo['classes'] == ('archery', 'zumba')
    infos = [data.get_data_info(i) for i in range(len(data))]
    assert [(info['label'], info['filename'].split('/')[-2]) for info in infos] == [
        (0, 'archery'),
        (1, 'zumba'),
    ]
    assert data[1]['inputs'].shape == (1, 3, 4, 56, 56)
    with pytest.raises(InputError, match="'zumba' is not among the 1 classes"):
        dataset(folder, classes=['archery'], **cfg)


def test_a_test_never_replaces(folder):
    data = dataset(folder, 'val', skip_unreadable=True)
    with pytest.raises(UnreadableFileError, match=r'clip 1.mp4'):
        data[1]


def test_broken_video_is_replaced_and_counted(folder, caplog):
    data = dataset(folder, skip_unreadable=True)
    with caplog.at_level(logging.WARNING):
        sample = data[PositionedIndex(1, 7, 0)]
    again = data[PositionedIndex(1, 7, 0)]
    assert int(sample['data_samples'].gt_label) in (0, 2)
    assert torch.equal(sample['inputs'], again['inputs'])  # the same one, at the same place
    assert data.num_replaced >= 2
    assert data.num_replaced % 2 == 0


def _no_frames(info):
    raise AssertionError('Invalid frame count: 0')


def _io_error(number):
    def pipeline(info):
        raise OSError(number, os.strerror(number), info['filename'])

    return pipeline


@pytest.mark.parametrize('kind', ['folder', 'io', 'frames'])
def test_other_ways_of_being_unreadable_are_replaced_too(folder, kind):
    data = dataset(folder, skip_unreadable=True)
    whole, path = data.pipeline, folder / 'videos' / 'clip 1.mp4'
    if kind == 'folder':
        path.unlink()
        path.mkdir()
    else:
        broken = _io_error(errno.EIO) if kind == 'io' else _no_frames
        data.pipeline = lambda info: (broken if info['filename'] == str(path) else whole)(info)
    sample = data[PositionedIndex(1, 7, 0)]
    assert int(sample['data_samples'].gt_label) in (0, 2)
    assert data.num_replaced == 1
    data.skip_unreadable = False
    with pytest.raises(UnreadableFileError, match='video cannot be decoded: .*clip 1.mp4'):
        data[1]


def test_the_machine_is_not_the_video(folder):
    data = dataset(folder, skip_unreadable=True)
    data.pipeline = _io_error(errno.EMFILE)
    with pytest.raises(UnreadableFileError, match='clip 0.mp4 .*Too many open files'):
        data[0]
    assert data.num_replaced == 0
    data.pipeline = lambda info: (_ for _ in ()).throw(AssertionError('of the code'))
    with pytest.raises(AssertionError, match='of the code'):
        data[0]


def test_workers_make_the_same_clips(folder):
    data = dataset(folder, skip_unreadable=True)

    def first(workers):
        sampler = ExactInfiniteSampler(data, seed=3)
        loader = DataLoader(
            data, 2, sampler=sampler, num_workers=workers, collate_fn=pseudo_collate
        )
        loaded = iter(loader)
        return [clip for _ in range(3) for clip in next(loaded)['inputs']]

    for one, other in zip(first(0), first(2)):
        assert torch.equal(one, other)


@pytest.mark.parametrize('name', [n for n in eva_mm.list_configs() if 'kinetics' in n])
def test_no_key_of_a_leaf_is_misspelt(name):
    assert check_config(load_config(name, 'mmaction')) == []


@pytest.mark.skipif(not REAL.is_dir(), reason=f'no real clips in {REAL}')
@pytest.mark.parametrize('clip', [0, 1])
@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_real_clips_through_the_pipelines_of_kinetics_400(part, clip, tmp_path):
    cfg = load_config('kinetics/eva_g_k400', 'mmaction')
    videos = sorted(path.name for path in REAL.glob('*.mp4'))
    assert len(videos) == 2
    (tmp_path / 'list.txt').write_text(''.join(f'{name} {i}\n' for i, name in enumerate(videos)))
    settings = cfg[f'{part}_dataloader'].dataset
    settings.update(ann_file=str(tmp_path / 'list.txt'), data_prefix=dict(video=str(REAL)))
    data = DATASETS.build(settings)
    batch = pseudo_collate([data[clip]])
    views = 12 if part == 'test' else 1
    assert batch['inputs'][0].shape == (views, 3, 16, 224, 224)

    cfg.model.backbone.update(embed_dim=16, depth=1, num_heads=2, mlp_dim=16, drop_path_rate=0.0)
    cfg.model.cls_head.in_channels = 16
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        (result,) = model.test_step(batch)
    assert result.pred_score.shape == (400,)
    assert float(result.pred_score.sum()) == pytest.approx(1, abs=1e-4)
