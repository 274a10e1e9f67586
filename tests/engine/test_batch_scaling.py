"""At another batch, a run by iterations sees as many images and has the rates that go with them."""

import pytest
from mmengine.config import ConfigDict
from mmengine.optim import CosineAnnealingLR

from eva_mm.engine import launch
from eva_mm.engine.batch_scaling import scale_to_images
from tests.engine.exact_task import exact_config_text
from tests.engine.test_many_processes import rates
from tests.toy_task import config_text, make_data


@pytest.mark.parametrize('leaf', ['lvis/eva_cascade', 'coco/eva_cascade'])
@pytest.mark.parametrize(('processes', 'accumulate'), [(16, 1), (8, 2)])
def test_a_quarter_of_the_published_batch(leaf, processes, accumulate):
    pytest.importorskip('mmdet')
    plain = launch.prepare_train_config(leaf)
    scaled = launch.prepare_train_config(
        leaf,
        auto_scale_lr=True,
        accumulate=accumulate,
        for_dry_run=True,
        num_gpus=processes,
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
        param_scheduler=dict(
            type='CosineAnnealingLR', by_epoch=False, T_max=900, begin=50, end=950
        ),
        default_hooks=dict(checkpoint=dict(by_epoch=False, interval=1, save_begin=0)),
    )
    assert scale_to_images(cfg, 64 / 96)
    assert cfg.train_cfg == dict(max_iters=667, val_interval=667, dynamic_intervals=[(601, 7)])
    scheduler = dict(type='CosineAnnealingLR', by_epoch=False, T_max=600, begin=33, end=633)
    assert cfg.param_scheduler == scheduler
    assert cfg.default_hooks.checkpoint == dict(by_epoch=False, interval=1, save_begin=0)


SCHEDULES = {
    'linear': [dict(type='LinearLR', start_factor=0.001, begin=0, end=3)],
    'constant': [dict(type='mmengine.ConstantLR', factor=0.1, begin=0, end=41)],
    'poly': [dict(type='PolyLR', power=0.9, eta_min=0.1, begin=10, end=91)],
    'cosine': [
        dict(type='LinearLR', start_factor=0.01, begin=0, end=20),
        dict(type=CosineAnnealingLR, eta_min=0.1, begin=20, end=100, T_max=80),
    ],
    'restarts': [
        dict(type='CosineRestartLR', periods=[30, 30, 40], restart_weights=[1] * 3, eta_min=0.0)
    ],
    'steps': [dict(type='MultiStepLR', milestones=[25, 50, 75], gamma=0.5)],
}


@pytest.mark.parametrize('factor', [0.25, 0.65, 3.0])
@pytest.mark.parametrize('name', SCHEDULES)
def test_every_kind_of_schedule_keeps_its_shape(name, factor):
    def config():
        schedule = [dict(s, by_epoch=False) for s in SCHEDULES[name]]
        return ConfigDict(train_cfg=dict(max_iters=100), param_scheduler=schedule, default_hooks={})

    plain, scaled = config(), config()
    assert scale_to_images(scaled, factor)
    assert scaled.train_cfg.max_iters == round(100 * factor)
    before, after = rates(plain, 100), rates(scaled, round(100 * factor))
    # Within two steps of the shorter run of where it was.
    near = 2 * max(1, round(1 / factor))
    for i, rate in enumerate(after):
        place = i / factor
        window = before[max(0, int(place) - near) : int(place) + near + 1]
        assert min(window) - 3e-3 <= rate <= max(window) + 3e-3, (i, rate, window)
    assert after[-1] == pytest.approx(before[-1], abs=0.05)


def test_runs_by_epochs_and_the_published_batch_stay():
    by_epoch = ConfigDict(
        train_cfg=dict(max_epochs=12), param_scheduler=[dict(type='MultiStepLR', milestones=[8])]
    )
    assert not scale_to_images(by_epoch, 4.0)
    assert by_epoch.param_scheduler[0].milestones == [8]
    assert not scale_to_images(ConfigDict(train_cfg=dict(max_iters=7)), 1.0)


@pytest.mark.parametrize(
    'scheduler',
    [dict(type='ExponentialLR', gamma=0.9, by_epoch=False), dict(type='LinearLR', end=3)],
)
def test_what_cannot_be_scaled(scheduler):
    cfg = ConfigDict(train_cfg=dict(max_iters=9), param_scheduler=[scheduler])
    with pytest.raises(ValueError, match=f'cannot scale the schedule {scheduler["type"]}'):
        scale_to_images(cfg, 2.0)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(accumulate=0), '--accumulate takes .* not 0'),
        (dict(accumulate=-2), '--accumulate takes .* not -2'),
        (dict(for_dry_run=True, num_gpus=-1), '--gpus takes .* not -1'),
        (
            dict(cfg_options={'optim_wrapper.accumulative_counts': 2}),
            'accumulative_counts=2: leave the latter out',
        ),
    ],
)
def test_numbers_that_mean_nothing(tmp_path, options, message):
    (tmp_path / 'toy.py').write_text(config_text(tmp_path))
    with pytest.raises(launch.UsageError, match=message):
        launch.prepare_train_config(str(tmp_path / 'toy.py'), auto_scale_lr=True, **options)


@pytest.mark.parametrize(('launcher', 'processes'), [('none', 1), ('slurm', 8)])
def test_a_dry_run_reckons_with_the_processes_of_the_launcher(
    tmp_path, monkeypatch, capsys, launcher, processes
):
    """And forms no group, which a machine without GPUs could not."""
    make_data(tmp_path / 'data')
    (tmp_path / 'toy.py').write_text(config_text(tmp_path / 'data'))
    monkeypatch.setenv('SLURM_NTASKS', '8')
    cfg = launch.prepare_train_config(
        str(tmp_path / 'toy.py'), auto_scale_lr=True, launcher=launcher, for_dry_run=True
    )
    assert cfg.train_cfg.max_iters == round(30 * 8 / (4 * processes))
    assert launch.dry_run(cfg) == 0
    assert f'4 per GPU x {processes} GPUs' in capsys.readouterr().out


def test_a_run_of_another_length_is_not_resumed(tmp_path):
    make_data(tmp_path / 'data')
    (tmp_path / 'toy.py').write_text(exact_config_text(tmp_path / 'data'))
    work = str(tmp_path / 'work')
    options = {'train_cfg.max_iters': 5, 'experiment_name': 'length'}
    cfg = launch.prepare_train_config(str(tmp_path / 'toy.py'), options, work, auto_scale_lr=True)
    assert cfg.train_cfg.max_iters == 10  # 4 images per update in place of 8
    launch.build_runner(cfg).train()
    with pytest.raises(launch.UsageError, match='2 times as long as the config, now it is 1 times'):
        launch.prepare_train_config(str(tmp_path / 'toy.py'), options, work, resume='auto')
    again = launch.prepare_train_config(
        str(tmp_path / 'toy.py'), options, work, resume='auto', auto_scale_lr=True
    )
    assert again.resume
