"""Counts, groups, rates and lengths of the leaves against the published logs and closed forms."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest

from eva_mm.engine.layer_decay import param_group_table
from eva_mm.zoo.table import published_models

from ..helpers import build_leaf, rates_of_schedule


class Run(NamedTuple):
    """A published run, written down by hand from its log and its settings."""

    frames: int
    steps: int  # per epoch
    epochs: int
    parameters: int
    layer_decay: float = 0.95
    lr: float = 1e-6
    drop_path: float = 0.2
    warm_up: int = 0  # epochs
    start: str = 'eva_video_k722'


RUNS = {
    722: Run(8, 2458, 40, 1_014_686_546, 1.0, 8e-6, 0.3, 5, 'eva_psz14'),
    400: Run(16, 916, 1, 1_017_116_432),
    600: Run(16, 1612, 2, 1_017_398_232),
    700: Run(16, 2086, 2, 1_017_539_132),
}
STATED = {722: 1014.69, 400: 1017.12, 600: 1017.40, 700: 1017.54}  # millions, logs

pytestmark = pytest.mark.parametrize('classes', RUNS)


@pytest.fixture
def built():
    """Config, model on the meta device and optimizer wrapper of a leaf."""
    return lambda classes: build_leaf(f'kinetics/eva_g_k{classes}', 'mmaction')


def test_number_of_parameters(built, classes):
    _, model, _ = built(classes)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == RUNS[classes].parameters
    assert round(count / 1e6, 2) == STATED[classes]
    published = published_models()[f'eva_video_k{classes}']
    assert published.config == f'configs/kinetics/eva_g_k{classes}.py'


def expected_depth(name: str) -> int:
    """Rule of the published code, by names alone."""
    name = name.removeprefix('backbone.')
    if name in ('cls_token', 'pos_embed') or name.startswith('patch_embed'):
        return 0
    return int(name.split('.')[1]) + 1 if name.startswith('blocks.') else 41


def test_every_parameter_has_its_rate_and_decay(built, classes):
    run, (_, model, wrapper) = RUNS[classes], built(classes)
    table = {}
    for name, value in model.named_parameters():
        spared = value.ndim == 1 or name in ('backbone.pos_embed', 'backbone.cls_token')
        rate = run.lr * run.layer_decay ** (41 - expected_depth(name))
        table[name] = (pytest.approx(rate, rel=1e-12), 0.0 if spared else 0.05)
    rows = param_group_table(wrapper)
    assert {row.name: (row.lr, row.weight_decay) for row in rows} == table
    # 1.22e-7 is the lowest rate in the logs.
    lowest = 8e-6 if classes == 722 else 1.22e-7
    assert min(row.lr for row in rows) == pytest.approx(lowest, rel=2e-3)


def closed_form(run: Run) -> np.ndarray:
    """Rate of the highest group in each update."""
    total, rise = run.epochs * run.steps, run.warm_up * run.steps
    if not rise:
        return np.full(total, run.lr)
    # The scheduler is asked after each update with that update's number.
    asked = np.maximum(np.arange(total) - 1, 0)
    low = run.lr / 100
    falling = low + 0.5 * (run.lr - low) * (1 + np.cos(math.pi * (asked - rise) / (total - rise)))
    return np.where(asked < rise, asked * run.lr / rise, falling)


def test_rates_of_every_update(built, classes):
    run, (cfg, _, wrapper) = RUNS[classes], built(classes)
    total = run.epochs * run.steps
    assert cfg.train_cfg.max_iters == total
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == run.steps
    rates = [group['lr'] for group in wrapper.optimizer.param_groups]
    ends = (max(rates), min(rates))
    found = np.array(list(itertools.islice(rates_of_schedule(cfg, ends), total)))
    expected = closed_form(run)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-9, atol=1e-19)
    np.testing.assert_allclose(found[:, 1], expected * ends[1] / ends[0], rtol=1e-9, atol=1e-19)


def test_the_rest_of_the_recipe(built, classes):
    run, (cfg, model, wrapper) = RUNS[classes], built(classes)
    group = wrapper.optimizer.param_groups[0]
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    assert (tuple(group['betas']), group['eps']) == ((0.9, 0.98), 1e-6)
    assert not wrapper.clip_grad_kwargs
    assert cfg.auto_scale_lr.base_batch_size == 256
    assert model.backbone.clip_grid == (run.frames, 16, 16)
    assert model.backbone.blocks[-1].drop_path.rate == pytest.approx(run.drop_path)
    assert not model.backbone.stop_grad_patch_embed
    assert model.cls_head.label_smooth_eps == 0.1
    assert cfg.load_from == f'eva://{run.start}'
    assert cfg.randomness.seed == 1024
    assert cfg.train_dataloader.batch_size == (2 if classes == 722 else 1)
    blending = model.data_preprocessor.blending
    if classes == 722:
        settings = (blending.mixup, blending.cutmix, blending.cutmix_prob, blending.num_classes)
        assert settings == (0.8, 1.0, 0.5, 722)
    else:
        assert blending is None
    for name, clips in (('train', 1), ('val', 1), ('test', 4)):
        sample = cfg[f'{name}_dataloader'].dataset.pipeline[1]
        assert (sample.num_frames, sample.get('num_clips', 1)) == (run.frames, clips)
        folder = f'data/kinetics{classes}/'
        assert cfg[f'{name}_dataloader'].dataset.ann_file.startswith(folder)
        assert cfg[f'{name}_dataloader'].dataset.data_prefix.video == folder
