"""Parameter groups and schedules of the leaves at full length, against closed forms."""

import math
from typing import NamedTuple

import pytest
import torch

from eva_mm.engine.layer_decay import param_group_table

from ..helpers import build_leaf, rates_of_schedule

TOP = 41
LOWEST = ('mask_embed', 'cls_embed', 'level_embed', 'query_embed', 'query_feat')


class Run(NamedTuple):
    """Settings of a leaf, written down by hand (EVA-01/seg: logs where they differ)."""

    lr: float
    decay: float
    warmup: int
    iterations: int
    batch: int  # of one GPU
    total_batch: int
    val_interval: int
    save_interval: int


RUNS = {
    'coco_stuff/eva_mask2former': Run(1.5e-5, 0.95, 1500, 60000, 1, 32, 8000, 2000),
    'coco_stuff/eva_mask2former_relpos': Run(1e-5, 0.95, 1500, 80000, 2, 32, 1000, 1000),
    'ade20k/eva_mask2former': Run(2.5e-5, 0.95, 500, 20000, 1, 64, 2000, 2000),
    'ade20k/eva_mask2former_relpos': Run(1e-5, 0.9, 1500, 40000, 2, 32, 1000, 1000),
}

pytestmark = pytest.mark.parametrize('name', RUNS)


@pytest.fixture
def built():
    """Config, model on the meta device and optimizer wrapper of a leaf."""
    return lambda name: build_leaf(name, 'mmseg')


def expected_depth(name: str) -> int:
    """Rule of the published code, by names alone."""
    if name in ('backbone.cls_token', 'backbone.pos_embed'):
        return 0
    if name.startswith(('backbone.patch_embed', *(f'decode_head.{part}' for part in LOWEST))):
        return 0
    if name.startswith('backbone.blocks.'):
        return int(name.split('.')[2]) + 1
    return TOP


def test_every_parameter_has_its_rate_and_decay(built, name):
    run = RUNS[name]
    _, model, wrapper = built(name)
    rows = {row.name: row for row in param_group_table(wrapper)}
    parameters = dict(model.named_parameters())
    assert rows.keys() == parameters.keys()
    for key, row in rows.items():
        lr = run.lr * run.decay ** (TOP - expected_depth(key))
        assert row.lr == pytest.approx(lr, rel=1e-12), key
        spared = parameters[key].ndim == 1 or key.endswith('.bias')
        assert row.weight_decay == (0.0 if spared else 0.05), key
    assert rows['backbone.pos_embed'].weight_decay == 0.05
    assert rows['backbone.cls_token'].weight_decay == 0.05
    assert rows['backbone.level_embed'].lr == run.lr
    table = 'backbone.blocks.7.attn.relative_position_bias_table'
    assert (table in rows) == ('relpos' in name)
    if table in rows:
        assert rows[table].weight_decay == 0.05


def test_groups(built, name):
    """Two groups per layer, lowest rate first."""
    _, _, wrapper = built(name)
    optimizer = wrapper.optimizer
    assert len(optimizer.param_groups) == 2 * (TOP + 1)
    assert optimizer.param_groups[0]['lr'] < optimizer.param_groups[-1]['lr']
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults['betas'] == (0.9, 0.999)
    assert optimizer.defaults['eps'] == 1e-8
    assert not wrapper.clip_grad_kwargs


def published_factor(step: int, warmup: int, iterations: int) -> float:
    """Linear decay to 0 over all iterations, times a linear warm-up from 1e-6."""
    warm = 1e-6 + (1 - 1e-6) * step / warmup if step < warmup else 1.0
    return warm * (1 - step / iterations)


def test_schedule_of_every_iteration(built, name):
    run = RUNS[name]
    cfg, _, _ = built(name)
    assert cfg.train_cfg.max_iters == run.iterations
    assert cfg.train_cfg.val_interval == run.val_interval
    assert cfg.default_hooks.checkpoint.interval == run.save_interval
    assert cfg.train_dataloader.batch_size == run.batch
    assert cfg.auto_scale_lr.base_batch_size == run.total_batch
    scales = [run.decay**TOP, 1.0]
    found = rates_of_schedule(cfg, [run.lr * scale for scale in scales])
    for step, rates in zip(range(run.iterations), found):
        expected = run.lr * published_factor(step, run.warmup, run.iterations)
        for rate, scale in zip(rates, scales):
            assert math.isclose(rate, expected * scale, rel_tol=1e-8), step
