"""Parameters, groups and rates of the leaves at full length, against closed forms."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS
from mmengine.runner import LogProcessor

import eva_mm
from eva_mm.engine.layer_decay import param_group_table
from eva_mm.pretraining.transforms import ResizeCenterCrop, TwoViewCrop

from ..helpers import build_leaf, rates_of_schedule


class Run(NamedTuple):
    """Settings of a leaf, written down by hand."""

    lr: float
    epochs: int
    steps: int  # per epoch
    warmup: int = 2  # epochs
    beta2: float = 0.98
    batch: int = 4096
    trainable: int = 0


# ViT-B/16: patches, positions with class token, blocks, norm, mask token, predictor.
BASE = 768 * 768 + 768 + 198 * 768 + 12 * (12 * 768**2 + 12 * 768) + 2 * 768 + 768


def pilot(epochs: int, outputs: int = 512) -> Run:
    """ViT-B on ImageNet-1K; its key has no bias."""
    return Run(1.5e-3, epochs, 625, 10, batch=2048, trainable=BASE + 769 * outputs)


RUNS = {
    # EVA-01/eva/README.md and logs/pt.
    'eva_g_merged30m': Run(1e-3, 150, 7242, trainable=1_012_229_632),
    'eva_l_in21k': Run(2.4e-3, 150, 3466, beta2=0.95, trainable=316_576_768),
    # Ours.
    'pilot_regress_short': pilot(300),
    'pilot_regress_long': pilot(800),
    'pilot_distill_short': pilot(300),
    'pilot_distill_long': pilot(800),
    'pilot_tokenized_short': pilot(300, 8192),
    'pilot_tokenized_long': pilot(1600, 8192),
}
MIN_LR, WEIGHT_DECAY, MAX_NORM = 1e-5, 0.05, 3.0

every_leaf = pytest.mark.parametrize('name', RUNS)


@pytest.fixture
def built():
    """Config, model on the meta device and optimizer wrapper of a leaf."""
    return lambda name: build_leaf(f'pretrain/{name}', 'mmengine')


def test_every_leaf_is_here():
    listed = {n.removeprefix('pretrain/') for n in eva_mm.list_configs() if 'pretrain/' in n}
    assert {n for n in listed if not n.startswith(('_base_', 'demo'))} == set(RUNS)


@every_leaf
def test_number_of_trainable_parameters(built, name):
    _, model, _ = built(name)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # The mask token stays as it is where nothing is masked.
    assert trained == RUNS[name].trainable - (768 if 'distill' in name else 0)


@every_leaf
def test_decay_and_optimizer(built, name):
    """Vectors, biases, positions and the class token are not decayed; the mask token is."""
    run, (_, model, wrapper) = RUNS[name], built(name)
    rows = {row.name: row for row in param_group_table(wrapper)}
    assert set(rows) == {n for n, p in model.named_parameters() if p.requires_grad}
    for parameter, row in rows.items():
        spared = parameter in ('pos_embed', 'cls_token') or model.get_parameter(parameter).ndim <= 1
        assert row.weight_decay == (0 if spared else WEIGHT_DECAY), parameter
        assert row.lr == run.lr, parameter
    if 'distill' not in name:
        assert rows['mask_token'].weight_decay == WEIGHT_DECAY
    assert len(wrapper.optimizer.param_groups) == 2
    assert type(wrapper.optimizer) is torch.optim.AdamW
    assert wrapper.optimizer.defaults['betas'] == (0.9, run.beta2)
    assert wrapper.optimizer.defaults['eps'] == 1e-6
    assert wrapper.clip_grad_kwargs == dict(max_norm=MAX_NORM)


def published_lr(run: Run) -> np.ndarray:
    """Rate of every step: linear from 0 to the peak, then half a cosine from the peak again.

    EVA-01/eva/utils.py, ``cosine_scheduler``.
    """
    warmup, total = run.warmup * run.steps, run.epochs * run.steps
    rise = run.lr * np.arange(warmup) / (warmup - 1)
    phase = np.arange(total - warmup) / (total - warmup)
    return np.concatenate((rise, MIN_LR + 0.5 * (run.lr - MIN_LR) * (1 + np.cos(math.pi * phase))))


def simulated_lr(cfg, lr: float) -> np.ndarray:
    """Rate of every step by the leaf's schedulers, as the Runner steps them."""
    steps = itertools.islice(rates_of_schedule(cfg, [lr]), cfg.train_cfg.max_iters)
    return np.array([rate for (rate,) in steps])


@every_leaf
def test_mean_rate_of_every_epoch(built, name):
    run, (cfg, _, _) = RUNS[name], built(name)
    expected, found = published_lr(run), simulated_lr(cfg, cfg.optim_wrapper.optimizer.lr)
    assert len(found) == run.epochs * run.steps
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-20)
    means = [rates.reshape(run.epochs, run.steps).mean(1) for rates in (found, expected)]
    np.testing.assert_allclose(*means, rtol=1e-11)  # rounding adds up over a million steps
    assert found[0] < 1e-20
    assert found[run.warmup * run.steps - 1] == pytest.approx(run.lr, rel=1e-12)
    assert found[-1] == pytest.approx(MIN_LR, rel=1e-3)


@every_leaf
def test_loop_and_batch(built, name):
    run, (cfg, _, _) = RUNS[name], built(name)
    assert cfg.train_cfg.max_iters == run.epochs * run.steps
    assert cfg.train_cfg.val_interval == run.steps
    assert cfg.default_hooks.checkpoint.interval % run.steps == 0
    assert cfg.auto_scale_lr.base_batch_size == run.batch
    assert run.batch % cfg.train_dataloader.batch_size == 0
    assert cfg.train_dataloader.sampler.type == 'ExactInfiniteSampler'
    warmup, cosine = cfg.param_scheduler
    assert (warmup.begin, warmup.end) == (0, run.warmup * run.steps)
    assert (cosine.begin, cosine.end) == (warmup.end, cfg.train_cfg.max_iters)
    assert cosine.T_max == cosine.end - cosine.begin


@every_leaf
def test_transforms_fit_the_grids(built, name):
    """One list of transforms per loader, of the grid that student and teacher share."""
    cfg, model, _ = built(name)
    for part in ('train', 'val', 'test'):
        pipeline = cfg[f'{part}_dataloader'].dataset.pipeline
        assert pipeline[0].size == pipeline[0].teacher_size == 224
        assert pipeline[-1].type == 'PackImage'
        grids = {t.grid_size for t in pipeline if 'grid_size' in t}
        assert grids == (set() if 'distill' in name else {model.pos_embed_grid[0]})
    kinds = [cfg[f'{part}_dataloader'].dataset.pipeline[1].type for part in ('train', 'val')]
    expected = {'eva_l': ['MaskNoise'] * 2, 'pilot_distill': ['PackImage'] * 2}
    key = next((k for k in expected if name.startswith(k)), None)
    assert kinds == expected.get(key, ['BlockMask', 'AlternatingMask'])
    assert model.teacher.grid == model.pos_embed_grid


class Data(NamedTuple):
    """What the student sees, written down by hand."""

    batch: int = 32  # per GPU
    val_batch: int = 48
    grid: int = 16
    mask: dict | None = None


BLOCKS = dict(type='BlockMask', grid_size=16, num_masked=105, min_area=16)
SMALL_BLOCKS = dict(type='BlockMask', grid_size=14, num_masked=75, min_area=16)
DATA = {
    'eva_g': Data(mask=BLOCKS),
    'eva_l': Data(mask=dict(type='MaskNoise', grid_size=16)),
    'pilot_distill': Data(64, 96, 14),
    'pilot_regress': Data(64, 96, 14, SMALL_BLOCKS),
    'pilot_tokenized': Data(64, 96, 14, SMALL_BLOCKS),
}
VALIDATION = {'BlockMask': 'AlternatingMask', 'MaskNoise': 'MaskNoise'}
PHOTOS = {
    'eva_g': 'data/merged30m/',
    'eva_l': 'data/imagenet21k/',
    'pilot': 'data/imagenet/train/',
}


def of(name, table):
    return next(value for key, value in table.items() if name.startswith(key))


@every_leaf
def test_transforms_have_the_published_arguments(built, name):
    """Those that are left out have their defaults, so the built transforms are looked at."""
    cfg, data = built(name)[0], of(name, DATA)
    built_transforms = [TRANSFORMS.build(t) for t in cfg.train_dataloader.dataset.pipeline]
    crop = built_transforms[0]
    assert type(crop) is TwoViewCrop
    assert (crop.size, crop.teacher_size, crop.flip_prob) == (224, 224, 0.5)
    assert tuple(crop.scale) == (0.2, 1.0)
    assert tuple(crop.ratio) == (3 / 4, 4 / 3)
    if data.mask and data.mask['type'] == 'BlockMask':
        mask = built_transforms[1]
        assert (mask.height, mask.width) == (data.grid, data.grid)
        assert (mask.num_masked, mask.min_area, mask.tries) == (
            data.mask['num_masked'],
            data.mask['min_area'],
            10,
        )
        assert mask.max_area == mask.num_masked
        assert mask.log_ratio == pytest.approx((math.log(0.3), -math.log(0.3)))
    masks = [dict(t) for t in cfg.train_dataloader.dataset.pipeline if 'grid_size' in t]
    assert masks == ([data.mask] if data.mask else [])
    validation = cfg.val_dataloader.dataset.pipeline
    crop = TRANSFORMS.build(validation[0])
    assert type(crop) is ResizeCenterCrop
    assert (crop.size, crop.resize, crop.teacher_size) == (224, 256, 224)
    kinds = [dict(t) for t in validation if 'grid_size' in t]
    assert kinds == (
        [dict(type=VALIDATION[data.mask['type']], grid_size=data.grid)] if data.mask else []
    )


@every_leaf
def test_loaders_have_the_published_arguments(built, name):
    cfg, data = built(name)[0], of(name, DATA)
    train, validation = cfg.train_dataloader, cfg.val_dataloader
    assert (train.batch_size, validation.batch_size) == (data.batch, data.val_batch)
    assert train.sampler == dict(type='ExactInfiniteSampler', shuffle=True)
    assert validation.sampler == dict(type='DefaultSampler', shuffle=False)
    assert train.dataset.data_root == of(name, PHOTOS)
    assert 'num_views' not in train.dataset
    assert train.dataset.skip_unreadable
    assert validation.dataset.data_root == 'data/imagenet/val/'
    assert validation.dataset.test_mode
    assert cfg.test_dataloader == validation
    assert cfg.val_evaluator.type == cfg.test_evaluator.type == 'MIMLossMetric'


TEACHERS = {
    'eva_g': ('ViT-L-14', 'openai', 768),
    'eva_l': ('EVA01-g-14', 'laion400m_s11b_b41k', 1024),
    'pilot': ('ViT-B-16', 'openai', 512),
}


@every_leaf
def test_student_and_teacher_have_the_published_arguments(built, name):
    cfg, model, _ = built(name)
    rates = [block.drop_path.rate for block in model.blocks]
    last = 0.0 if 'eva_l' in name else 0.1
    assert rates == pytest.approx(list(np.linspace(0, last, len(rates))))
    teacher = model.teacher
    assert (teacher.name, teacher.weights, teacher.feature_dim) == of(name, TEACHERS)
    assert teacher.image_size == (224, 224)
    preprocessor = model.data_preprocessor
    assert preprocessor.mean.shape == preprocessor.std.shape == (3, 1, 1)
    assert cfg.optim_wrapper.type == 'BF16OptimWrapper'
    if 'eva_l' in name:
        assert model.num_kept == 64
        assert len(model.decoder_blocks) == 4
        assert {block.attn.num_heads for block in model.decoder_blocks} == {16}
        assert model.decoder_embed.out_features == 512
    else:
        assert model.predict == ('all' if 'distill' in name else 'masked')
    kind = 'CodebookClassification' if 'tokenized' in name else 'CosineRegression'
    assert type(model.target).__name__ == kind


@every_leaf
def test_losses_of_validation_are_logged_as_they_are(built, name):
    """mmengine would print the mean of this one and those before."""
    cfg, _, _ = built(name)
    pattern = LogProcessor(**cfg.log_processor).mean_pattern
    for key in ('loss', 'loss_cls', 'time', 'data_time', 'grad_norm'):
        assert pattern.search(key)
    assert not pattern.search('pretrain/loss')
