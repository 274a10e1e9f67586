"""Checkpoints are whole or not there."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from mmengine import runner as mmengine_runner
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from eva_mm.engine import launch, saving
from eva_mm.engine.checkpoint import safe_load
from eva_mm.engine.hooks import checkpoint as checkpoint_hook
from tests.engine.exact_task import environment, exact_config_text
from tests.toy_task import make_data

ROOT = Path(__file__).resolve().parents[2]


def run(code, *args):
    return subprocess.Popen(
        [sys.executable, '-c', textwrap.dedent(code), *map(str, args)],
        env=environment(ROOT),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_mmengine_saves_through_it():
    assert mmengine_runner.runner.save_checkpoint is saving.save_checkpoint
    assert mmengine_runner.save_checkpoint is saving.save_checkpoint


def test_what_is_saved_is_read_again(tmp_path):
    weights = torch.randn(3, 5)
    path = str(tmp_path / 'new' / 'a.pth')
    saving.save_checkpoint(dict(state_dict=dict(a=weights, b=weights[1:]), meta=dict(x=1)), path)
    loaded = safe_load(path)
    assert torch.equal(loaded['state_dict']['a'], weights)
    assert loaded['meta'] == dict(x=1)
    assert names(tmp_path / 'new') == ['a.pth']


def test_other_storages_stay_with_mmengine(monkeypatch):
    calls = []
    monkeypatch.setattr(saving, '_save_elsewhere', lambda *args: calls.append(args))
    saving.save_checkpoint({}, 's3://bucket/a.pth', backend_args=dict(backend='petrel'))
    saving.save_checkpoint({}, 'a.pth', file_client_args=dict(backend='disk'))
    assert [args[1] for args in calls] == ['s3://bucket/a.pth', 'a.pth']


def test_shared_storage_counts_once():
    weights = torch.zeros(4, 8)
    assert saving.checkpoint_bytes(dict(a=weights, b=[weights[0]], c=torch.zeros(2))) == 128 + 8


def test_a_disk_that_is_full(tmp_path):
    """The limit of a file's size stands for the disk: writes fail half-way."""
    path = tmp_path / 'iter_5.pth'
    torch.save(dict(state_dict=dict(old=torch.ones(1))), path)
    code = """
        import resource, sys, torch
        from eva_mm.engine.saving import save_checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        save_checkpoint(dict(state_dict=dict(w=torch.zeros(2**20))), sys.argv[1])
    """
    text, _ = (process := run(code, path)).communicate(timeout=100)
    assert process.returncode == 1
    last = text.strip().splitlines()[-1]
    assert f'OSError: checkpoint {path} could not be written: File too large.' in last
    assert 'It needs about 4.00 MiB, ' in last
    assert names(tmp_path) == ['iter_5.pth']
    assert safe_load(path)['state_dict'] == dict(old=torch.ones(1))


def test_a_kill_while_writing(tmp_path):
    path = tmp_path / 'iter_5.pth'
    torch.save(dict(state_dict=dict(old=torch.ones(1))), path)
    code = """
        import sys, time
        from eva_mm.engine.saving import write_whole
        def write(file):
            file.write(b'half of it')
            file.flush()
            print('writing', flush=True)
            time.sleep(100)
        write_whole(sys.argv[1], write)
    """
    process = run(code, path)
    assert process.stdout.readline() == 'writing\n'
    process.kill()
    process.communicate()
    assert names(tmp_path) == ['iter_5.pth', 'iter_5.pth.tmp']
    assert safe_load(path)['state_dict'] == dict(old=torch.ones(1))


@pytest.fixture
def toy(tmp_path):
    """`toy(**options)`: the Runner of a run that saves every 5 iterations, in `tmp_path/work`."""
    make_data(tmp_path / 'data')
    config = tmp_path / 'toy.py'
    config.write_text(exact_config_text(tmp_path / 'data'))

    def build(**options):
        options = {'randomness.seed': 5, **{k.replace('__', '.'): v for k, v in options.items()}}
        options['experiment_name'] = f'toy_{time.time_ns()}'
        cfg = launch.prepare_train_config(str(config), options, str(tmp_path / 'work'))
        return launch.build_runner(cfg)

    return build


def kept(tmp_path):
    return [name for name in names(tmp_path / 'work') if '.pth' in name]


@METRICS.register_module()
class Rising(BaseMetric):
    """Grows with each evaluation."""

    default_prefix = 'toy'
    calls = 0

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        self.calls += 1
        return dict(calls=self.calls)


KEEP = 'default_hooks__checkpoint__max_keep_ckpts'


def test_outdated_ones_go_after_the_new_one_is_complete(toy, tmp_path, monkeypatch):
    seen = []
    original = saving.write_whole

    def watch(path, write):
        original(path, write)
        seen.append((os.path.basename(path), kept(tmp_path)))

    monkeypatch.setattr(saving, 'write_whole', watch)
    toy(**{KEEP: 1, 'train_cfg__max_iters': 15}).train()
    assert seen == [
        ('iter_5.pth', ['iter_5.pth']),
        ('iter_10.pth', ['iter_10.pth', 'iter_5.pth']),
        ('iter_15.pth', ['iter_10.pth', 'iter_15.pth']),
    ]
    assert kept(tmp_path) == ['iter_15.pth']
    assert (tmp_path / 'work' / 'last_checkpoint').read_text().endswith('work/iter_15.pth')


def test_a_failed_save_costs_no_checkpoint(toy, tmp_path, monkeypatch):
    original = torch.save

    def full(checkpoint, file):
        if checkpoint['meta']['iter'] == 15:
            file.write(b'torso')
            raise OSError(28, 'No space left on device')
        original(checkpoint, file)

    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match=r'iter_15\.pth could not be written: No space left'):
        toy(**{KEEP: 1}).train()
    assert kept(tmp_path) == ['iter_10.pth']
    assert (tmp_path / 'work' / 'last_checkpoint').read_text().endswith('work/iter_10.pth')


def test_the_best_one_too_goes_last(toy, tmp_path, monkeypatch):
    seen = []
    original = saving.write_whole

    def watch(path, write):
        original(path, write)
        seen.append([name for name in kept(tmp_path) if name.startswith('best')])

    monkeypatch.setattr(saving, 'write_whole', watch)
    saver = 'default_hooks__checkpoint__'
    options = {saver + 'save_best': 'toy/calls', saver + 'rule': 'greater'}
    toy(**options, train_cfg__max_iters=14, val_evaluator=dict(type='Rising')).train()
    both = ['best_toy_calls_iter_14.pth', 'best_toy_calls_iter_7.pth']
    assert both in seen
    assert [name for name in kept(tmp_path) if name.startswith('best')] == both[:1]


def test_what_a_killed_run_left_is_cleared(toy, tmp_path):
    work = tmp_path / 'work'
    work.mkdir()
    (work / 'iter_20.pth.tmp').write_bytes(b'torso')
    (work / 'non_finite_iter_3.pth.tmp').write_bytes(b'torso')
    (work / 'notes.tmp').touch()
    toy(train_cfg__max_iters=1).train()
    assert not (work / 'iter_20.pth.tmp').exists()
    assert not (work / 'non_finite_iter_3.pth.tmp').exists()
    assert (work / 'notes.tmp').exists()


def test_an_outdated_one_that_a_killed_run_had_no_time_to_remove(toy, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*args):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_hook, '_remove', kill)
        with pytest.raises(Killed):
            toy(**{KEEP: 1, 'train_cfg__max_iters': 15}).train()
    assert kept(tmp_path) == ['iter_10.pth', 'iter_5.pth']
    newest = str(tmp_path / 'work' / 'iter_10.pth')
    toy(resume=True, load_from=newest, **{KEEP: 1, 'train_cfg__max_iters': 11}).train()
    assert kept(tmp_path) == ['iter_11.pth']


def test_other_errors_pass_as_they_are(tmp_path):
    class Broken:
        def __reduce__(self):
            raise RuntimeError('a tensor that cannot be copied')

    with pytest.raises(RuntimeError, match='^a tensor that cannot be copied'):
        saving.save_checkpoint(dict(state_dict=Broken()), str(tmp_path / 'x.pth'))
    assert names(tmp_path) == []
