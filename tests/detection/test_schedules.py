"""Parameter groups and schedules of the leaves at full length, against closed forms."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS

from eva_mm.engine.layer_decay import param_group_table

from ..helpers import load_config

# name: (base lr, warm-up, milestones, iterations), EVA-01/det/projects/ViTDet/configs.
RUNS = {
    'coco/eva_cascade': (2.5e-5, 500, (40000, 44999), 45000),
    'lvis/eva_cascade': (2e-4, 250, (70000, 75000), 75001),
}
DEPTH, DECAY, WEIGHT_DECAY = 40, 0.9, 0.1

pytestmark = pytest.mark.parametrize('name', RUNS)


@pytest.fixture(scope='module')
def built():
    """Config, model on the meta device and optimizer wrapper of a leaf."""
    cache = {}

    def _built(name):
        if name not in cache:
            cfg = load_config(name)
            with torch.device('meta'):
                model = MODELS.build(cfg.model)
            cache[name] = cfg, model, build_optim_wrapper(model, cfg.optim_wrapper)
        return cache[name]

    return _built


def expected_depth(name: str) -> int:
    """Rule of the published code, by names alone."""
    if name.startswith(('backbone.pos_embed', 'backbone.patch_embed')):
        return 0
    if name.startswith('backbone.blocks.'):
        return int(name.split('.')[2]) + 1
    return DEPTH + 1


def test_every_parameter_has_its_rate_and_decay(built, name):
    base_lr = RUNS[name][0]
    cfg, model, wrapper = built(name)
    rows = {row.name: row for row in param_group_table(wrapper)}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(rows) == trained
    assert {n for n, _ in model.named_parameters()} - trained == {
        'backbone.patch_embed.proj.weight',
        'backbone.patch_embed.proj.bias',
    }
    for parameter, row in rows.items():
        lr = base_lr * DECAY ** (DEPTH + 1 - expected_depth(parameter))
        assert row.lr == pytest.approx(lr, rel=1e-12), parameter
        assert row.weight_decay == WEIGHT_DECAY, parameter


def test_groups(built, name):
    """One group per layer: 42 in all, lowest rate first, nothing spared of weight decay."""
    _, model, wrapper = built(name)
    groups = wrapper.optimizer.param_groups
    assert [len(g['params']) for g in groups[:1]] == [1]  # pos_embed alone
    assert len(groups) == DEPTH + 2
    # qkv weight and two biases, two tables, proj, two norms, two MLP layers: 15 tensors a block.
    per_block = 1 + 2 + 2 + 2 + 4 + 4
    assert all(len(g['params']) == per_block for g in groups[1:-1])
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
    base_lr, warmup, milestones, iterations = RUNS[name]
    cfg, _, _ = built(name)
    assert cfg.train_cfg.max_iters == iterations
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 5000
    scales = [DECAY ** (DEPTH + 1), 1.0]
    optimizer = torch.optim.SGD(
        [dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=base_lr * s) for s in scales]
    )
    schedulers = [
        PARAM_SCHEDULERS.build(s, default_args=dict(optimizer=optimizer))
        for s in cfg.param_scheduler
    ]
    for step in range(iterations):
        expected = base_lr * published_multiplier(step, warmup, milestones)
        for group, scale in zip(optimizer.param_groups, scales):
            assert group['lr'] == pytest.approx(expected * scale, rel=1e-9), step
        for scheduler in schedulers:
            scheduler.step()


def test_batch(built, name):
    cfg, _, wrapper = built(name)
    assert cfg.train_dataloader.batch_size == 1
    assert cfg.auto_scale_lr.base_batch_size == 64
    assert wrapper._accumulative_counts == 1
    assert wrapper.clip_grad_kwargs is None or not wrapper.clip_grad_kwargs
