"""Normalisation, and mixing equal to timm's."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from timm.data import Mixup

from eva_mm.classification import ClassificationDataPreprocessor
from eva_mm.errors import InputError

from ..helpers import load_config

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def batch(number=4, classes=3):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (number, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return dict(image=image, label=torch.arange(number) % classes, img_path=['x'] * number)


def normalised(image):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (image / 255 - mean) / std


def test_normalises_by_the_values_of_clip():
    data = batch()
    out = ClassificationDataPreprocessor()(data, training=True)
    torch.testing.assert_close(out['image'], normalised(data['image']))
    assert out['image'].dtype == torch.float32
    assert out['img_path'] == ['x'] * 4
    assert data['image'].dtype == torch.uint8  # left alone
    torch.testing.assert_close(out['label'], data['label'])


@pytest.mark.parametrize('alphas', [(0.0, 1.0), (0.8, 0.0), (0.8, 1.0)])
def test_mixes_as_the_published_object(alphas):
    arguments = dict(
        mixup_alpha=alphas[0], cutmix_alpha=alphas[1], label_smoothing=0.1, num_classes=3
    )
    preprocessor = ClassificationDataPreprocessor(mixup=arguments)
    published = Mixup(prob=1.0, switch_prob=0.5, mode='batch', correct_lam=True, **arguments)
    for seed in range(5):
        data = batch()
        np.random.seed(seed)
        out = preprocessor(data, training=True)
        np.random.seed(seed)
        image, target = published(normalised(data['image']), data['label'])
        torch.testing.assert_close(out['image'], image)
        torch.testing.assert_close(out['label'], target)
        torch.testing.assert_close(out['label'].sum(1), torch.ones(4))


def test_mixed_targets_hold_the_smoothing():
    preprocessor = ClassificationDataPreprocessor(
        mixup=dict(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=3)
    )
    np.random.seed(0)
    label = preprocessor(dict(batch(), label=torch.zeros(4).long()), training=True)['label']
    # Image pairs of one class: on value 1 - s + s / K, off value s / K.
    torch.testing.assert_close(label[0], torch.tensor([0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]))


def test_evaluation_mixes_nothing():
    preprocessor = ClassificationDataPreprocessor(mixup=dict(mixup_alpha=1.0, num_classes=3))
    out = preprocessor(batch(3), training=False)
    torch.testing.assert_close(out['image'], normalised(batch(3)['image']))
    assert out['label'].ndim == 1


def test_bad_input():
    preprocessor = ClassificationDataPreprocessor(mixup=dict(mixup_alpha=1.0, num_classes=3))
    with pytest.raises(InputError, match='batch_size is 3: make it even'):
        preprocessor(batch(3), training=True)
    with pytest.raises(InputError, match='above 0'):
        ClassificationDataPreprocessor(mixup=dict(mixup_alpha=0.0, cutmix_alpha=0.0))


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('imagenet/eva_g_in21k_224', (0.0, 1.0, 0.1, 21841)),
        ('imagenet/eva_g_in1k_336', None),
        ('imagenet/eva_l_in21k_in1k_196', None),
        ('imagenet/eva_l_in1k_196', (0.8, 1.0, 0.1, 1000)),
    ],
)
def test_mixing_of_the_leaves(name, expected):
    mixup = MODELS.build(load_config(name, 'mmengine').model.data_preprocessor).mixup
    if expected is None:
        assert mixup is None
        return
    values = (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.label_smoothing, mixup.num_classes)
    assert values == expected
    assert (mixup.mix_prob, mixup.switch_prob) == (1.0, 0.5)
    assert (mixup.mode, mixup.correct_lam) == ('batch', True)
