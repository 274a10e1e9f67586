"""At another batch, a run by iterations sees as many images and has the rates that go with them."""

import pytest
from mmengine.config import ConfigDict

from eva_mm.engine import launch
from eva_mm.engine.batch_scaling import scale_to_images
from tests.engine.test_many_processes import rates


@pytest.mark.parametrize('leaf', ['lvis/eva_cascade', 'coco/eva_cascade'])
@pytest.mark.parametrize(('processes', 'accumulate'), [(16, 1), (8, 2)])
def test_a_quarter_of_the_published_batch(leaf, processes, accumulate):
    pytest.importorskip('mmdet')
    plain = launch.prepare_train_config(leaf)
    scaled = launch.prepare_train_config(
        leaf, auto_scale_lr=True, accumulate=accumulate, num_processes=processes
    )
    updates, passes = plain.train_cfg.max_iters, 4 * accumulate
    assert scaled.train_cfg.max_iters == passes * updates
    assert scaled.train_cfg.val_interval == passes * plain.train_cfg.val_interval
    interval = plain.default_hooks.checkpoint.interval
    assert scaled.default_hooks.checkpoint.interval == passes * interval
    # mmengine multiplies the rate: one image per process.
    assert processes / scaled.auto_scale_lr.base_batch_size == 1 / 4
    # After as many images, the factor on the rate is the same.
    expected = rates(plain, updates)
    found = rates(scaled, passes * updates)
    assert len(set(expected)) > 250
    assert found[::passes] == pytest.approx(expected, rel=1e-9)


def test_a_larger_batch_of_an_odd_ratio():
    cfg = ConfigDict(
        train_cfg=dict(max_iters=1000, dynamic_intervals=[(901, 10)]),
        param_scheduler=dict(type='StepLR', by_epoch=False, step_size=100, begin=50, end=950),
        default_hooks=dict(checkpoint=dict(by_epoch=False, interval=1, save_begin=0)),
    )
    assert scale_to_images(cfg, 64 / 96)
    assert cfg.train_cfg == dict(max_iters=667, val_interval=667, dynamic_intervals=[(601, 7)])
    scheduler = dict(type='StepLR', by_epoch=False, step_size=67, begin=33, end=633)
    assert cfg.param_scheduler == scheduler
    assert cfg.default_hooks.checkpoint == dict(by_epoch=False, interval=1, save_begin=0)


def test_runs_by_epochs_and_the_published_batch_stay():
    by_epoch = ConfigDict(
        train_cfg=dict(max_epochs=12), param_scheduler=[dict(type='MultiStepLR', milestones=[8])]
    )
    assert not scale_to_images(by_epoch, 4.0)
    assert by_epoch.param_scheduler[0].milestones == [8]
    assert not scale_to_images(ConfigDict(train_cfg=dict(max_iters=7)), 1.0)


@pytest.mark.parametrize(
    'scheduler',
    [dict(type='ExponentialLR', gamma=0.9, by_epoch=False), dict(type='StepLR', step_size=3)],
)
def test_what_cannot_be_scaled(scheduler):
    cfg = ConfigDict(train_cfg=dict(max_iters=9), param_scheduler=[scheduler])
    with pytest.raises(ValueError, match=f'cannot scale the schedule {scheduler["type"]}'):
        scale_to_images(cfg, 2.0)
