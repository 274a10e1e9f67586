"""Transforms of the leaves against directly built references at fixed seeds."""

import math
import random

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from mmengine.dataset import Compose
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import functional as F

from eva_mm.classification import CropWithoutRetry, TimmTransform
from eva_mm.engine.exact_data import seed_generators
from eva_mm.errors import InputError

from ..helpers import load_config

FINE_TUNED = [
    ('imagenet/eva_g_in21k_224', 224, 0.5),
    ('imagenet/eva_g_in1k_336', 336, 0.08),
    ('imagenet/eva_g_in1k_560', 560, 0.08),
    ('imagenet/eva_clip_ft_224', 224, 0.08),
    ('imagenet/eva_clip_ft_336', 336, 0.08),
    ('imagenet/eva_l_in21k_224', 224, 0.5),
    ('imagenet/eva_l_in1k_196', 196, 0.08),
    ('imagenet/eva_l_in1k_336', 336, 0.08),
    ('imagenet/eva_l_in21k_in1k_196', 196, 0.08),
    ('imagenet/eva_l_in21k_in1k_336', 336, 0.08),
]


def photo(width=90, height=70, seed=0):
    """Smooth enough that interpolation matters, but no constant."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.BICUBIC)


def run(pipeline, seed):
    seed_generators(seed)
    return Compose(pipeline)(dict(image=photo(), img_path='x'))['image']


@pytest.mark.parametrize(('name', 'size', 'lowest'), FINE_TUNED)
def test_training_transform_of_fine_tuning(name, size, lowest):
    cfg = load_config(name, 'mmengine')
    # The call of EVA-01/eva/datasets.py, up to the conversion to a tensor.
    published = create_transform(
        input_size=size,
        is_training=True,
        color_jitter=0.4,
        auto_augment='rand-m9-mstd0.5-inc1',
        interpolation='bicubic',
        re_prob=0.0,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        scale=(lowest, 1.0),
    )
    kinds = [type(t).__name__ for t in published.transforms[:3]]
    assert kinds == [
        'RandomResizedCropAndInterpolation',
        'RandomHorizontalFlip',
        'RandAugment',
    ]  # no colour jitter beside RandAugment
    for seed in range(3):
        own = run(cfg.train_dataloader.dataset.pipeline, seed)
        seed_generators(seed)
        expected = photo()
        for transform in published.transforms[:3]:
            expected = transform(expected)
        assert own.shape == (3, size, size)
        assert own.dtype == torch.uint8
        assert torch.equal(own, F.pil_to_tensor(expected))


def test_parts_of_the_training_transform_in_order():
    """Without timm's factory: crop, then flip."""
    pipeline = [
        dict(type='TimmTransform', size=32, is_training=True, scale=(0.5, 1.0), color_jitter=0)
    ]
    # color_jitter=0 builds one that changes nothing, and draws its order.
    seed_generators(3)
    image = RandomResizedCropAndInterpolation(
        32, scale=(0.5, 1.0), ratio=(3 / 4, 4 / 3), interpolation='bicubic'
    )(photo())
    expected = T.RandomHorizontalFlip(0.5)(image)
    assert torch.equal(run(pipeline, 3), F.pil_to_tensor(expected))


@pytest.mark.parametrize(
    ('name', 'size'),
    [(name, size) for name, size, _ in FINE_TUNED if 'in21k_224' not in name]
    + [('imagenet/eva_clip_linear_224', 224), ('imagenet/eva_clip_linear_336', 336)],
)
def test_evaluation_transform(name, size):
    """crop_pct 1: the shorter side to the input's, bicubic, then the centre."""
    cfg = load_config(name, 'mmengine')
    own = Compose(cfg.test_dataloader.dataset.pipeline)(dict(image=photo(), img_path='x'))
    image = F.resize(photo(), size, F.InterpolationMode.BICUBIC)
    expected = F.pil_to_tensor(F.center_crop(image, size))
    assert torch.equal(own['image'], expected)
    assert cfg.test_dataloader.dataset.pipeline == cfg.val_dataloader.dataset.pipeline


def test_crop_percentage_enlarges_the_resize():
    pipeline = [dict(type='TimmTransform', size=28, crop_pct=0.875)]
    own = Compose(pipeline)(dict(image=photo()))['image']
    image = F.center_crop(F.resize(photo(), 32, F.InterpolationMode.BICUBIC), 28)
    assert torch.equal(own, F.pil_to_tensor(image))


def reference_crop(image, size, seed):
    """Published crop of the probe, drawn by hand: area, ratio, top, left."""
    seed_generators(seed)
    width, height = image.size
    area = width * height * torch.empty(1).uniform_(0.08, 1.0).item()
    logs = torch.log(torch.tensor((3 / 4, 4 / 3)))
    ratio = torch.exp(torch.empty(1).uniform_(logs[0], logs[1])).item()
    w = min(int(round(math.sqrt(area * ratio))), width)
    h = min(int(round(math.sqrt(area / ratio))), height)
    top = torch.randint(0, height - h + 1, size=(1,)).item()
    left = torch.randint(0, width - w + 1, size=(1,)).item()
    image = image.crop((left, top, left + w, top + h)).resize((size, size), Image.BICUBIC)
    return image.transpose(Image.FLIP_LEFT_RIGHT) if torch.rand(1) < 0.5 else image


@pytest.mark.parametrize(
    ('name', 'size'), [('eva_clip_linear_224', 224), ('eva_clip_linear_336', 336)]
)
def test_training_transform_of_the_probe(name, size):
    pipeline = load_config(f'imagenet/{name}', 'mmengine').train_dataloader.dataset.pipeline
    for seed in range(4):
        expected = F.pil_to_tensor(reference_crop(photo(), size, seed))
        assert torch.equal(run(pipeline, seed), expected)


def test_crop_of_the_probe_is_cut_to_the_image_and_not_drawn_again():
    image = photo(200, 20)
    seed_generators(0)
    boxes = [CropWithoutRetry.get_params(image, (0.9, 1.0), (3 / 4, 4 / 3)) for _ in range(50)]
    # At 90 % of the area no such box fits: each is as high as the image.
    assert all((top, height) == (0, 20) for top, _, height, _ in boxes)
    assert len({width for *_, width in boxes}) > 10
    assert max(width for *_, width in boxes) < 80


def test_augmentation_follows_the_position():
    """All random numbers come from the seeded generators."""
    pipeline = load_config('imagenet/eva_l_in1k_196', 'mmengine').train_dataloader.dataset.pipeline
    first = run(pipeline, 7)
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert torch.equal(run(pipeline, 7), first)
    assert not torch.equal(run(pipeline, 8), first)


def test_random_erasing_is_refused():
    TimmTransform(32, is_training=True, re_prob=0.0)
    with pytest.raises(InputError, match=r're_prob=0\.25: random erasing is not done'):
        TimmTransform(32, is_training=True, re_prob=0.25)
