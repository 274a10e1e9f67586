"""Lists of videos, broken ones, and the whole pipelines of a leaf on real clips."""

import logging

import numpy as np
import pytest
import torch
from mmaction.registry import DATASETS, MODELS
from mmengine.dataset import pseudo_collate
from torch.utils.data import DataLoader

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
    cfg = shrink_video(load_config('kinetics/eva_g_k400', 'mmaction'))
    if text is not None:
        (folder / 'list.txt').write_text(text)
    settings = cfg[f'{part}_dataloader'].dataset
    settings.update(
        ann_file=str(folder / 'list.txt'), data_prefix=dict(video=str(folder / 'videos')), **options
    )
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


def test_missing_list(folder):
    (folder / 'list.txt').unlink()
    with pytest.raises(MissingFileError, match=r'list of videos not found: .*list.txt'):
        dataset(folder)


def test_broken_video_stops_and_is_named(folder):
    data = dataset(folder)
    with pytest.raises(UnreadableFileError, match=r'cannot be decoded: .*clip 1.mp4'):
        data[1]
    (folder / 'videos' / 'clip 1.mp4').unlink()
    with pytest.raises(UnreadableFileError, match=r'video not found: .*clip 1.mp4'):
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


@pytest.mark.parametrize('name', ['eva_g_k722', 'eva_g_k400', 'eva_g_k600', 'eva_g_k700'])
def test_no_key_of_a_leaf_is_misspelt(name):
    assert check_config(load_config(f'kinetics/{name}', 'mmaction')) == []


@pytest.mark.skipif(not REAL.is_dir(), reason=f'no real clips in {REAL}')
@pytest.mark.parametrize('part', ['train', 'val', 'test'])
def test_real_clips_through_the_pipelines_of_kinetics_400(part, tmp_path):
    cfg = load_config('kinetics/eva_g_k400', 'mmaction')
    videos = sorted(path.name for path in REAL.glob('*.mp4'))
    assert len(videos) == 2
    (tmp_path / 'list.txt').write_text(''.join(f'{name} {i}\n' for i, name in enumerate(videos)))
    settings = cfg[f'{part}_dataloader'].dataset
    settings.update(ann_file=str(tmp_path / 'list.txt'), data_prefix=dict(video=str(REAL)))
    data = DATASETS.build(settings)
    batch = pseudo_collate([data[0]])
    views = 12 if part == 'test' else 1
    assert batch['inputs'][0].shape == (views, 3, 16, 224, 224)

    cfg.model.backbone.update(embed_dim=16, depth=1, num_heads=2, mlp_dim=16, drop_path_rate=0.0)
    cfg.model.cls_head.in_channels = 16
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        (result,) = model.test_step(batch)
    assert result.pred_score.shape == (400,)
    assert float(result.pred_score.sum()) == pytest.approx(1, abs=1e-4)
