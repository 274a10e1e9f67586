"""Which frames are taken, against closed forms, and how colours change."""

import math

import numpy as np
import pytest
from mmaction.registry import TRANSFORMS
from mmengine.registry import init_default_scope

from eva_mm.errors import UnreadableFileError
from eva_mm.video.transforms import SampleSegments

LENGTHS = (1, 5, 16, 17, 300)


def sampled(total, **options):
    results = SampleSegments(**options).transform(dict(total_frames=total, start_index=0))
    assert results['frame_inds'].dtype == np.int32
    assert results['frame_inds'].size == results['clip_len'] * results['num_clips']
    return results['frame_inds'].reshape(results['num_clips'], -1)


@pytest.mark.parametrize('total', LENGTHS)
def test_one_view_takes_the_middles(total):
    expected = [math.floor((i + 0.5) * total / 16) for i in range(16)]
    assert sampled(total, num_frames=16, clips='even')[0].tolist() == expected


@pytest.mark.parametrize('total', LENGTHS)
def test_training_takes_one_frame_of_each_segment(total):
    np.random.seed(0)
    clips = np.concatenate([sampled(total, num_frames=16) for _ in range(200)])
    assert clips.min() >= 0
    assert clips.max() < total
    if total < 16:  # rounded halves to even, wrapped at the end
        expected = [round(i * total / 16) % total for i in range(16)]
        assert (clips == expected).all()
    else:
        length = total // 16
        starts = np.arange(16) * length
        assert (clips >= starts).all()
        assert (clips < starts + length).all()
        for column, start in zip(clips.T, starts):
            assert set(column) == set(range(start, start + length))


@pytest.mark.parametrize('total', LENGTHS)
def test_views_drawn_at_random_are_four_training_clips(total):
    np.random.seed(3)
    views = sampled(total, num_frames=16, num_clips=4)
    np.random.seed(3)
    expected = [sampled(total, num_frames=16)[0] for _ in range(4)]
    assert np.array_equal(views, expected)


@pytest.mark.parametrize('total', LENGTHS)
def test_even_views_are_the_same_each_time(total):
    views = sampled(total, num_frames=16, num_clips=4, clips='even')
    for k, view in enumerate(views):
        expected = [math.floor((i + (k + 0.5) / 4) * total / 16) for i in range(16)]
        assert view.tolist() == expected
    if total == 300:
        assert len({tuple(view) for view in views}) == 4


def test_unknown_clips():
    with pytest.raises(ValueError, match=r"one of \('random', 'even'\).*'dense'"):
        SampleSegments(16, clips='dense')


def test_video_without_frames():
    with pytest.raises(UnreadableFileError, match=r'video without frames: a\.mp4'):
        SampleSegments(16).transform(dict(total_frames=0, filename='a.mp4'))


@pytest.fixture
def clip():
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return [image.copy() for _ in range(6)]


def jitter(**sizes):
    init_default_scope('mmaction')
    together = dict(type='TorchVisionWrapper', op='ColorJitter', **sizes)
    return together, dict(type='ColorJitterPerFrame', **sizes)


def test_each_frame_has_colours_of_its_own(clip):
    together, alone = jitter(brightness=0.4)
    image = clip[0].copy()
    changed = TRANSFORMS.build(alone)(dict(imgs=[*clip]))['imgs']
    assert len({frame.tobytes() for frame in changed}) == 6
    for frame in changed:
        # Brighter or darker by at most 0.4, all of it alike.
        ratio = frame.sum() / image.sum()
        assert 0.55 < ratio < 1.4
        expected = np.clip(image * ratio, 0, 255)
        assert frame.shape == image.shape
        assert frame.dtype == np.uint8
        if frame.max() < 255:
            assert np.abs(frame - expected).max() < 2
    alike = TRANSFORMS.build(together)(dict(imgs=[*clip]))['imgs']
    assert len({frame.tobytes() for frame in alike}) == 1
