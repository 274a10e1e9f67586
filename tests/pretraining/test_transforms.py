"""Crops against torchvision's own, built directly and run from the same seed."""

import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS
from PIL import Image
from torchvision import transforms as T  # noqa: N812
from torchvision.transforms import InterpolationMode

import eva_mm.pretraining.transforms  # noqa: F401  (registers)

BICUBIC = InterpolationMode.BICUBIC
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)


def photo(width, height):
    """Smooth shapes with noise on top, so that any shift or other filter shows."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 17) + np.cos(y / 11), np.sin((x + y) / 7), np.cos(x / 5) * np.sin(y / 23)]
    noise = np.random.default_rng(0).normal(0, 0.2, (height, width, 3))
    return Image.fromarray(np.uint8(np.clip(127 + 50 * (np.stack(waves, -1) + noise), 0, 255)))


def build(kind, **options):
    return TRANSFORMS.build(dict(type=kind, **options))


def run(transform, image, seed):
    torch.manual_seed(seed)
    return transform(image)


# Of the wide and the tall one, no crop within the ratio may be found in ten tries.
@pytest.mark.parametrize('size', [(300, 200), (97, 203), (500, 40), (30, 400), (20, 20)])
def test_the_training_crop_is_torchvisions(size):
    reference = T.Compose(
        [T.RandomHorizontalFlip(0.5), T.RandomResizedCrop(56, SCALE, RATIO, BICUBIC)]
    )
    ours = build('TwoViewCrop', size=56)
    image = photo(*size)
    for seed in range(8):
        results = run(ours, dict(image=image), seed)
        assert set(results) == {'image'}
        assert np.array_equal(results['image'], run(reference, image, seed))


def test_half_of_the_images_are_flipped():
    image = photo(40, 40)
    flipped = 0
    for seed in range(400):
        whole = build('TwoViewCrop', size=40, scale=(1, 1), ratio=(1, 1))
        found = np.asarray(run(whole, dict(image=image), seed)['image'])
        if np.array_equal(found, np.asarray(image)[:, ::-1]):
            flipped += 1
        else:
            assert np.array_equal(found, image)
    assert 160 < flipped < 240


def test_crops_have_the_published_areas_and_ratios():
    """Read off a picture whose colours are its coordinates."""
    y, x = np.mgrid[:256, :256]
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    crop = build('TwoViewCrop', size=32, flip_prob=0)
    areas, ratios = [], []
    for seed in range(400):
        found = np.asarray(run(crop, dict(image=image), seed)['image'], dtype=float)
        # One pixel of the result is (side of the crop) / 32 wide.
        width, height = ((found[20, 20] - found[10, 10]) * 3.2)[:2]
        areas.append(width * height / 256**2)
        ratios.append(width / height)
    assert 0.18 < min(areas) < 0.25
    assert 0.85 < max(areas) < 1.05
    # With u uniform in (0, ln 4/3), a crop of area a fits if a <= exp(-u): then the mean of a is
    # (E exp(-2u) - 0.2^2) / 2 / (E exp(-u) - 0.2).
    assert np.mean(areas) == pytest.approx(0.5386, abs=0.04)
    assert 0.7 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.42
    assert np.mean(np.log(ratios)) == pytest.approx(0, abs=0.03)


def test_the_teacher_sees_the_same_crop_at_its_size():
    image = photo(211, 150)
    ours = build('TwoViewCrop', size=56, teacher_size=80)
    for seed in range(4):
        results = run(ours, dict(image=image), seed)
        for key, size in (('image', 56), ('teacher_image', 80)):
            reference = T.Compose(
                [T.RandomHorizontalFlip(0.5), T.RandomResizedCrop(size, SCALE, RATIO, BICUBIC)]
            )
            assert np.array_equal(results[key], run(reference, image, seed))
    same = build('TwoViewCrop', size=56, teacher_size=56)(dict(image=image))
    assert 'teacher_image' not in same


@pytest.mark.parametrize('size', [(300, 200), (97, 203), (30, 31)])
def test_the_validation_crop_is_torchvisions(size):
    image = photo(*size)
    found = build('ResizeCenterCrop')(dict(image=image))
    reference = T.Compose([T.Resize(256, BICUBIC), T.CenterCrop(224)])
    assert set(found) == {'image'}
    assert np.array_equal(found['image'], reference(image))


def test_in_validation_too_the_teacher_sees_the_same_part():
    image = photo(300, 200)
    found = build('ResizeCenterCrop', size=112, resize=128, teacher_size=56)(dict(image=image))
    reference = T.Compose([T.Resize(64, BICUBIC), T.CenterCrop(56)])
    assert np.array_equal(found['teacher_image'], reference(image))
    half = found['image'].resize((56, 56), Image.Resampling.BICUBIC)
    error = np.abs(np.asarray(half, float) - np.asarray(found['teacher_image'], float)).mean()
    assert error < 3


def test_packing_keeps_every_grey_level_and_the_rest_of_the_sample():
    image = photo(7, 5)
    results = build('PackImage')(dict(image=image, teacher_image=image, img_path='x.jpg'))
    assert results['img_path'] == 'x.jpg'
    for key in ('image', 'teacher_image'):
        assert results[key].dtype == torch.uint8
        assert results[key].shape == (3, 5, 7)
        assert np.array_equal(results[key].permute(1, 2, 0), image)
