"""Parameter groups and schedules of the leaves at full length, against closed forms."""

import math
from typing import NamedTuple

import pytest
import torch

from eva_mm.engine.layer_decay import param_group_table

from ..helpers import build_leaf, rates_of_schedule

WEIGHT_DECAY = 0.1


class Run(NamedTuple):
    """Settings of a leaf, written down by hand."""

    lr: float
    warmup: int
    milestones: tuple[int, int]
    iterations: int
    val_interval: int = 5000
    depth: int = 40
    decay: float = 0.9
    batch: int = 64
    frozen: bool = True  # the patch embedding
    # qkv weight and two biases, two tables, proj, two norms, two MLP layers.
    per_block: int = 1 + 2 + 2 + 2 + 4 + 4


LARGE = dict(depth=24, decay=0.8, batch=16, per_block=14)  # one bias for q, k and v
BASE = dict(depth=12, decay=0.7, batch=16, frozen=False)
RUNS = {
    # EVA-01/det/projects/ViTDet/configs.
    'coco/eva_cascade': Run(2.5e-5, 500, (40000, 44999), 45000),
    'lvis/eva_cascade': Run(2e-4, 250, (70000, 75000), 75001),
    # Ours, but for the number of iterations of Objects365.
    'objects365/eva_cascade': Run(1e-4, 500, (338000, 366000), 380000, 20000),
    'coco/eva_l_cascade': Run(5e-5, 250, (78000, 84500), 88000, **LARGE),
    'lvis/eva_l_cascade': Run(1e-4, 250, (78000, 84500), 88000, **LARGE),
    'coco/eva_b_cascade': Run(5e-5, 250, (78000, 84500), 88000, **BASE),
    'lvis/eva_b_cascade': Run(1e-4, 250, (78000, 84500), 88000, **BASE),
}

pytestmark = pytest.mark.parametrize('name', RUNS)


@pytest.fixture
def built():
    """Config, model on the meta device and optimizer wrapper of a leaf."""
    return lambda name: build_leaf(name)


def expected_depth(name: str, depth: int) -> int:
    """Rule of the published code, by names alone."""
    if name.startswith(('backbone.pos_embed', 'backbone.patch_embed')):
        return 0
    if name.startswith('backbone.blocks.'):
        return int(name.split('.')[2]) + 1
    return depth + 1


def test_every_parameter_has_its_rate_and_decay(built, name):
    run = RUNS[name]
    _, model, wrapper = built(name)
    rows = {row.name: row for row in param_group_table(wrapper)}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(rows) == trained
    patches = {'backbone.patch_embed.proj.weight', 'backbone.patch_embed.proj.bias'}
    assert {n for n, _ in model.named_parameters()} - trained == (patches if run.frozen else set())
    for parameter, row in rows.items():
        lr = run.lr * run.decay ** (run.depth + 1 - expected_depth(parameter, run.depth))
        assert row.lr == pytest.approx(lr, rel=1e-12), parameter
        assert row.weight_decay == WEIGHT_DECAY, parameter


def test_groups(built, name):
    """One group per layer, 42 for EVA-g, lowest rate first, nothing spared of weight decay."""
    run = RUNS[name]
    _, model, wrapper = built(name)
    groups = wrapper.optimizer.param_groups
    assert len(groups[0]['params']) == (1 if run.frozen else 3)  # pos_embed, patch embedding
    assert len(groups) == run.depth + 2
    assert all(len(g['params']) == run.per_block for g in groups[1:-1])
    count = sum(p.numel() for g in groups for p in g['params'])
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)
    optimizer = wrapper.optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults['betas'] == (0.9, 0.999)
    assert optimizer.defaults['eps'] == 1e-8


def published_multiplier(step: int, warmup: int, milestones: tuple[int, ...]) -> float:
    """Linear from 0.001 over the warm-up, then tenths at the milestones, these included."""
    factor = 0.001 + 0.999 * step / warmup if step < warmup else 1.0
    return factor * 0.1 ** sum(step >= m for m in milestones)


def test_schedule_of_every_iteration(built, name):
    run = RUNS[name]
    cfg, _, _ = built(name)
    assert cfg.train_cfg.max_iters == run.iterations
    assert cfg.train_cfg.val_interval == run.val_interval
    assert cfg.default_hooks.checkpoint.interval == 5000
    scales = [run.decay ** (run.depth + 1), 1.0]
    found = rates_of_schedule(cfg, [run.lr * scale for scale in scales])
    for step, rates in zip(range(run.iterations), found):
        expected = run.lr * published_multiplier(step, run.warmup, run.milestones)
        for rate, scale in zip(rates, scales):
            assert math.isclose(rate, expected * scale, rel_tol=1e-9), step


def test_batch(built, name):
    cfg, _, wrapper = built(name)
    assert cfg.train_dataloader.batch_size == 1
    assert cfg.auto_scale_lr.base_batch_size == RUNS[name].batch
    assert wrapper._accumulative_counts == 1
    assert wrapper.clip_grad_kwargs is None or not wrapper.clip_grad_kwargs
