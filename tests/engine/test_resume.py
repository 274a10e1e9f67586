"""Which checkpoint is resumed, and what is taken from it."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.fileio import io as fileio_io
from mmengine.fileio.backends import registry_utils

from eva_mm.engine import launch, resume
from eva_mm.zoo import reading
from tests.engine.exact_task import environment, exact_config_text
from tests.helpers import ROOT, free_port
from tests.toy_task import make_data


def save(path, iteration=1, seed=3, **more):
    meta = dict(iter=iteration, epoch=0, seed=seed, **more)
    torch.save(dict(meta=meta, message_hub={}, optimizer={}, state_dict={}), path)
    return str(path)


@pytest.fixture
def cfg(tmp_path):
    return Config(dict(work_dir=str(tmp_path), train_cfg=dict(max_iters=100)))


@pytest.fixture
def messages(monkeypatch):
    said = []
    monkeypatch.setattr(
        resume, 'print_log', lambda text, logger, level=logging.INFO: said.append((level, text))
    )
    return said


def cut(path, share=0.5):
    os.truncate(path, int(os.path.getsize(path) * share))


def test_furthest_by_number_not_by_time(cfg, tmp_path):
    for number in (10, 9, 100):
        save(tmp_path / f'iter_{number}.pth', number)
    os.utime(tmp_path / 'iter_100.pth', (1, 1))
    for other in ('best_mAP_iter_500.pth', 'iter_200.pth.tmp', 'notes.txt'):
        (tmp_path / other).touch()
    names = [os.path.basename(path) for path in resume.saved_checkpoints(cfg)]
    assert names == ['iter_100.pth', 'iter_10.pth', 'iter_9.pth']


def test_folder_and_names_of_the_hook(cfg, tmp_path):
    cfg.default_hooks = dict(
        checkpoint=dict(out_dir=str(tmp_path / 'elsewhere'), filename_tmpl='step-{}.pt')
    )
    folder = tmp_path / 'elsewhere' / tmp_path.name
    folder.mkdir(parents=True)
    path = save(folder / 'step-3.pt')
    save(tmp_path / 'iter_4.pth')
    assert resume.saved_checkpoints(cfg) == [path]


def test_a_truncated_one_is_named_and_the_one_before_is_used(cfg, tmp_path, messages):
    good = save(tmp_path / 'iter_20.pth', 20)
    save(tmp_path / 'iter_10.pth', 10)
    cut(save(tmp_path / 'iter_30.pth', 30))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_30.pth'))
    (tmp_path / 'iter_40.pth').touch()
    launch.set_resume(cfg, 'auto')
    assert (cfg.resume, cfg.load_from, cfg.randomness.seed) == (True, good, 3)
    assert [level for level, _ in messages] == [logging.WARNING, logging.WARNING, logging.INFO]
    assert f'resuming from {good}' in messages[2][1]
    assert 'iter_40.pth cannot be read' in messages[0][1]
    assert 'iter_30.pth cannot be read' in messages[1][1]


def test_none_that_can_be_read(cfg, tmp_path):
    cut(save(tmp_path / 'iter_30.pth'))
    with pytest.raises(launch.UsageError, match=r'no checkpoint in .*iter_30\.pth cannot be read'):
        launch.set_resume(cfg, 'auto')


def test_nothing_to_resume(cfg):
    cfg.load_from = 'eva://start'
    launch.set_resume(cfg, 'auto')
    assert (cfg.get('resume', False), cfg.load_from) == (False, 'eva://start')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda path: os.remove(path), 'not found'),
        (lambda path: cut(path), 'cannot be read as a checkpoint'),
        (
            lambda path: torch.save(dict(state_dict={}), path),
            r'holds no state of a run \(meta, message_hub, optimizer absent\)',
        ),
    ],
)
def test_a_named_checkpoint_that_cannot_be_resumed(cfg, tmp_path, change, message):
    path = save(tmp_path / 'iter_5.pth')
    change(path)
    with pytest.raises(launch.UsageError, match=message):
        launch.set_resume(cfg, path)


def test_seed_of_the_checkpoint(cfg, tmp_path):
    path = save(tmp_path / 'iter_5.pth', seed=11)
    cfg.randomness = dict(seed=None, deterministic=True)
    launch.set_resume(cfg, path)
    assert cfg.randomness == dict(seed=11, deterministic=True)
    cfg.randomness.seed = 12
    with pytest.raises(launch.UsageError, match='seed 11, but randomness.seed is 12'):
        launch.set_resume(cfg, path)


def test_iterations_that_count_something_else(cfg, tmp_path):
    path = save(tmp_path / 'iter_5.pth', accumulate=4)
    with pytest.raises(launch.UsageError, match='resume it with 4'):
        launch.set_resume(cfg, path)
    cfg.accumulate = 4
    launch.set_resume(cfg, path)
    assert cfg.resume


READ_HEAD = """
import re, sys
from pathlib import Path
from eva_mm.engine import resume
peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])
Path('/proc/self/clear_refs').write_text('5')  # from here on the peak counts anew
before = peak()
print(resume.read_state(sys.argv[1]))
print(peak() - before)
"""


def test_the_head_alone_is_read(tmp_path):
    """A checkpoint far larger than what reading it takes.

    In a process of its own, its peak reset after the imports, which take more for a moment.
    """
    path = tmp_path / 'iter_1.pth'
    meta = dict(iter=1, epoch=0, seed=3)
    weights = torch.zeros(2**28, dtype=torch.uint8)
    torch.save(dict(meta=meta, message_hub={}, optimizer={}, state_dict=dict(w=weights)), path)
    command = [sys.executable, '-c', READ_HEAD, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    head, growth = done.stdout.strip().splitlines()[-2:]
    assert head == str(meta)
    assert int(growth) < 2**14  # KiB; the file has 2**18


def test_config_text_in_a_checkpoint_is_not_run(tmp_path):
    """mmengine runs `meta.config` as Python when it resumes."""
    make_data(tmp_path / 'data')
    (tmp_path / 'toy.py').write_text(exact_config_text(tmp_path / 'data'))

    def train(iterations, resume_from=None):
        options = {'train_cfg.max_iters': iterations, 'experiment_name': f'toy_{iterations}'}
        work_dir = str(tmp_path / 'work')
        cfg = launch.prepare_train_config(
            str(tmp_path / 'toy.py'), options, work_dir, resume=resume_from
        )
        launch.build_runner(cfg).train()

    train(2)
    path = tmp_path / 'work' / 'iter_2.pth'
    with torch.serialization.safe_globals(reading.allowed_globals()):
        saved = torch.load(path, weights_only=True)
    mark = tmp_path / 'mark'
    saved['meta']['config'] = f'import pathlib\npathlib.Path({str(mark)!r}).touch()\n'
    torch.save(saved, path)
    train(3, resume_from=str(path))
    assert (tmp_path / 'work' / 'iter_3.pth').exists()
    assert not mark.exists()


class Elsewhere(LocalBackend):
    """Another storage: `s3://NAME` lies in a folder."""

    root = None

    def get(self, filepath):
        return super().get(self._local(filepath))

    def isdir(self, filepath):
        return super().isdir(self._local(filepath))

    def list_dir_or_file(self, dir_path, **kwargs):
        return super().list_dir_or_file(self._local(dir_path), **kwargs)

    def _local(self, path):
        return path.replace('s3://', f'{self.root}/')


@pytest.fixture
def storage(tmp_path, monkeypatch):
    for table in (registry_utils.backends, registry_utils.prefix_to_backends):
        for name in ('petrel', 's3'):
            if name in table:
                monkeypatch.setitem(table, name, Elsewhere)
    monkeypatch.setattr(fileio_io, 'backend_instances', {})
    monkeypatch.setattr(Elsewhere, 'root', tmp_path / 'store')
    return tmp_path / 'store'


def test_checkpoints_on_another_storage(tmp_path, storage, messages):
    cfg = Config(dict(work_dir=str(tmp_path / 'run'), train_cfg=dict(max_iters=100)))
    cfg.default_hooks = dict(checkpoint=dict(out_dir='s3://bucket'))
    launch.set_resume(cfg, 'auto')
    assert not cfg.get('resume', False)
    folder = storage / 'bucket' / 'run'
    folder.mkdir(parents=True)
    save(folder / 'iter_20.pth', 20)
    cut(save(folder / 'iter_30.pth', 30))
    launch.set_resume(cfg, 'auto')
    assert (cfg.load_from, cfg.randomness.seed) == ('s3://bucket/run/iter_20.pth', 3)
    assert 's3://bucket/run/iter_30.pth: ' in messages[0][1]
    assert 'cannot be read' in messages[0][1]


def test_other_weights_may_differ_but_not_those_of_the_run(cfg, tmp_path):
    cfg.model = dict(allowed_missing=['roi_head.*'])
    launch.set_resume(cfg, 'auto')
    assert cfg.model.allowed_missing == ['roi_head.*']
    launch.set_resume(cfg, save(tmp_path / 'iter_5.pth'))
    assert cfg.model.allowed_missing == []


def test_a_storage_that_fails_is_told_in_one_message(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path), train_cfg=dict(max_iters=100)))
    with pytest.raises(launch.UsageError, match=r'--resume s3://.*ImportError'):
        launch.set_resume(cfg, 's3://bucket/iter_1.pth')
    (tmp_path / 'last_checkpoint').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(launch.UsageError, match='--resume'):
        launch.set_resume(cfg, 'auto')


def test_an_abandoned_branch_is_warned_of(cfg, tmp_path, messages):
    save(tmp_path / 'iter_50.pth', 50)
    went_back = save(tmp_path / 'iter_20.pth', 20)
    (tmp_path / 'last_checkpoint').write_text(went_back)
    launch.set_resume(cfg, 'auto')
    assert cfg.load_from.endswith('iter_50.pth')
    assert f'give --resume {went_back}' in messages[0][1]


CHOOSE = """
import sys
from mmengine.config import Config
from mmengine.dist import get_rank
from eva_mm.engine import launch
work_dir, newest = sys.argv[1:]
cfg = Config(dict(work_dir=work_dir, launcher='pytorch'))
launch.join_processes(cfg)
if get_rank() == 1:
    launch.newest_readable = lambda cfg: None  # the file system of this machine lags behind
try:
    launch.set_resume(cfg, newest)
    text = f'{cfg.get("resume", False)} {cfg.get("load_from")} {cfg.get("randomness")}'
except launch.UsageError as error:
    text = str(error)
sys.stdout.write(f'chosen: {text}\\n')
launch.leave_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize('broken', [False, True])
def test_all_processes_take_the_choice_of_the_first(tmp_path, broken):
    path = save(tmp_path / 'iter_7.pth', 7, seed=11)
    if broken:
        cut(path)
    (tmp_path / 'choose.py').write_text(CHOOSE)
    launcher = ['-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}']
    command = [sys.executable, *launcher, str(tmp_path / 'choose.py'), str(tmp_path), 'auto']
    env = environment(ROOT)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    said = [line for line in done.stdout.splitlines() if line.startswith('chosen: ')]
    assert len(said) == 2, done.stdout + done.stderr
    assert said[0] == said[1]
    expected = 'no checkpoint in' if broken else f"True {path} {{'seed': 11}}"
    assert expected in said[0]
