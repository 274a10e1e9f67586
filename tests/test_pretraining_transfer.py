"""The comparison of pretraining: what it changes, runs and tells."""

from types import SimpleNamespace

import pytest

from benchmarks import pretraining_transfer as module
from tests.helpers import load_config

START = {name: start for start, name in module.STARTS.items()}


@pytest.fixture
def trainings(monkeypatch, tmp_path):
    """Runs that take no time: each writes its checkpoint and a log, and is noted."""
    done = []

    def run(command, **_):
        settings = dict(
            text.split('=', 1) for text in command[command.index('--cfg-options') + 1 :]
        )
        folder = module.Path(command[command.index('--work-dir') + 1])
        config = command[1 + command.index('tools/train.py')]
        length = int(
            settings.get('train_cfg.max_iters')
            or load_config(config[len('configs/') : -len('.py')], 'mmengine').train_cfg.max_iters
        )
        log = folder / 'now' / 'vis_data'
        log.mkdir(parents=True)
        (folder / f'iter_{length}.pth').touch()
        start = next((n for n in ('distill', 'scratch') if n in folder.name), 'regress')
        seed = int(settings.get('randomness.seed', 0))
        top1 = dict(scratch=40, distill=60, regress=70)[start] + 2 * seed
        (log / 'scalars.json').write_text(
            ''.join(
                f'{{"{module.METRIC}": {top1 * step / length}, "step": {step}}}\n'
                for step in (length // 2, length)
            )
        )
        done.append(SimpleNamespace(config=config, folder=folder, settings=settings))

    monkeypatch.setattr(module.subprocess, 'run', run)
    monkeypatch.setattr(module, 'ROOT', tmp_path)
    monkeypatch.setattr('eva_mm.demo.generate_captions', lambda out: out)
    monkeypatch.setattr('eva_mm.demo.generate_imagenet', lambda out, *_: out)
    return done


def test_starts_differ_in_their_weights_alone(trainings):
    module.pretraining_transfer(seeds=2, steps=20)
    configs = [run.config for run in trainings]
    assert configs[:3] == [
        'configs/demo/clip_teacher.py',
        'configs/demo/pretrain_distill.py',
        'configs/demo/pretrain.py',
    ]
    assert trainings[1].settings == trainings[2].settings
    tunings = trainings[3:]
    assert len(tunings) == 6
    assert {run.config for run in tunings} == {'configs/demo/imagenet.py'}
    sources = [run.settings.pop('load_from', None) for run in tunings]
    assert sources[:2] == [None, None]
    assert [module.Path(s).parent.name for s in sources[2:]] == ['pretrain_distill'] * 2 + [
        'pretrain'
    ] * 2
    seeds = [run.settings.pop('randomness.seed') for run in tunings]
    assert seeds == ['0', '1'] * 3
    for run in tunings[2:]:
        assert run.settings.pop('model.allowed_missing') == '[fc_norm.*,head.*]'
    assert all(run.settings == tunings[0].settings for run in tunings)


def test_table_tells_the_last_values_their_mean_and_spread(trainings):
    (table,) = module.pretraining_transfer(seeds=3, steps=20)
    assert [tuple(row) for row in table.rows] == [
        (START[None], '40.0', '42.0', '44.0', '42.0', '2.0'),
        (START['pretrain_distill'], '60.0', '62.0', '64.0', '62.0', '2.0'),
        (START['pretrain'], '70.0', '72.0', '74.0', '72.0', '2.0'),
    ]
    assert len(table.header) == len(table.rows[0])


def test_complete_runs_are_not_run_again(trainings, tmp_path):
    module.pretraining_transfer(seeds=1, steps=20)
    before = len(trainings)
    module.pretraining_transfer(seeds=2, steps=20, plot=str(tmp_path / 'plot.png'))
    assert len(trainings) == before + 3
    assert (tmp_path / 'plot.png').stat().st_size > 1000
    # Stopped in its last evaluation.
    log = trainings[3].folder / 'now' / 'vis_data' / 'scalars.json'
    log.write_text(log.read_text().splitlines()[0] + '\n')
    log.parent.parent.rename(log.parent.parent.with_name('before'))
    module.pretraining_transfer(seeds=2, steps=20)
    assert len(trainings) == before + 4


@pytest.mark.parametrize('steps', [0, 12])
def test_steps_that_end_without_an_evaluation_are_refused(steps):
    with pytest.raises(ValueError, match=f'steps is {steps}, expected a multiple of 5'):
        module.pretraining_transfer(steps=steps)


def test_options_are_keys_of_the_demo_config(tmp_path):
    cfg = load_config('demo/imagenet', 'mmengine')
    options = module.fine_tuning_options(tmp_path, tmp_path / 'a.pth', 50, 3)
    new = {key for key in options if cfg.get(key.split('.')[0]) is None}
    assert new <= {'load_from', 'randomness.seed'}
    cfg.merge_from_dict(options)
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin == 5
    assert cfg.param_scheduler[1].end == cfg.train_cfg.max_iters == 50
    assert cfg.param_scheduler[1].T_max == 45
    assert cfg.train_cfg.max_iters % cfg.train_cfg.val_interval == 0
