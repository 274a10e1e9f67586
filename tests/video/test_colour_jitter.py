"""Colours of frames, against torchvision's tensor operations."""

import colorsys

import cv2
import numpy as np
import pytest
import torch
from mmaction.registry import TRANSFORMS
from mmengine.registry import init_default_scope
from torchvision.transforms import ColorJitter
from torchvision.transforms import functional as F

from eva_mm.video.transforms import ColorJitterPerFrame, shift_hue

PUBLISHED = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)


def planes(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def close(found, expected):
    assert found.dtype == np.uint8
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    return (difference > 0).mean()


@pytest.mark.parametrize('shift', [-0.5, -0.1, -1e-3, 0.0, 0.033, 0.1, 0.5])
def test_hue_of_every_kind_of_colour(shift):
    """A grid of all colours, with black, white, greys and pure ones among them."""
    levels = np.uint8([0, 1, 2, 50, 51, 127, 128, 200, 254, 255])
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(40, 25, 3)
    expected = F.adjust_hue(planes(colours), shift).numpy().transpose(1, 2, 0)
    assert close(shift_hue(colours, shift), expected) < 0.02


def test_hue_by_hand():
    red = np.full((2, 2, 3), (200, 40, 40), np.uint8)
    assert shift_hue(red, 1 / 3)[0, 0].tolist() == [40, 200, 40]
    assert shift_hue(red, -1 / 3)[0, 0].tolist() == [40, 40, 200]
    hue, saturation, value = colorsys.rgb_to_hsv(0.9, 0.3, 0.1)
    image = np.full((1, 1, 3), np.round(np.multiply(255, (0.9, 0.3, 0.1))), np.uint8)
    expected = np.multiply(255, colorsys.hsv_to_rgb((hue + 0.1) % 1, saturation, value))
    assert np.abs(shift_hue(image, 0.1)[0, 0] - expected).max() <= 1.5
    assert image[0, 0].tolist() == [230, 76, 26], 'the image itself is left alone'


def frames(number):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (number, 6, 8, 3), dtype=np.uint8)
    return [cv2.resize(image, (64, 48)) for image in coarse]


@pytest.mark.parametrize(
    'options', [PUBLISHED, dict(hue=0.3), dict(brightness=0.4), dict(contrast=0.4, saturation=0.9)]
)
def test_clips_are_torchvisions_frame_by_frame(options):
    clip = frames(24)
    torch.manual_seed(0)
    reference = ColorJitter(**options)
    expected = [reference(planes(frame)).numpy().transpose(1, 2, 0) for frame in clip]
    after = torch.rand(1)
    torch.manual_seed(0)
    found = ColorJitterPerFrame(**options)(dict(imgs=list(clip)))['imgs']
    assert torch.rand(1) == after, 'the same number of draws'
    shares = []
    for one, other, frame in zip(found, expected, clip, strict=True):
        # A level more or less before the contrast is stretched, by 1.4 x 1.4 x 1.2 at most.
        difference = np.abs(one.astype(int) - other)
        assert one.dtype == np.uint8
        assert difference.max() <= 3
        shares.append((difference > 0).mean())
        assert not np.array_equal(one, frame)
    assert np.mean(shares) < 0.02
    if 'hue' not in options:
        assert max(shares) == 0


def test_frames_of_any_memory_order():
    """After a flip frames are views that run backwards."""
    init_default_scope('mmaction')
    transform = TRANSFORMS.build(dict(type='ColorJitterPerFrame', **PUBLISHED))
    clip = frames(4)
    results = []
    for views in ([frame[:, ::-1] for frame in clip], [frame[:, ::-1].copy() for frame in clip]):
        torch.manual_seed(1)
        results.append(transform(dict(imgs=views))['imgs'])
    for one, other in zip(*results):
        assert np.array_equal(one, other)


def test_every_frame_draws_anew():
    [frame] = frames(1)
    changed = ColorJitterPerFrame(brightness=0.4)(dict(imgs=[frame] * 6))['imgs']
    assert len({image.tobytes() for image in changed}) == 6


def test_bad_ranges_are_torchvisions_errors():
    with pytest.raises(ValueError, match='hue values'):
        ColorJitterPerFrame(hue=0.7)
