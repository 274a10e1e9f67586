"""A run that is killed at any moment and resumed equals one that was never interrupted, bit by bit.

Real processes, ended by SIGKILL; every iteration's loss is compared with every bit.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from eva_mm.engine.checkpoint import safe_load
from tests.engine.exact_task import (
    SEED,
    environment,
    exact_config_text,
    kill_all,
    read_losses,
)
from tests.helpers import free_port
from tests.toy_task import make_data

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(ROOT / 'tools' / 'train.py')]
LAST = 30
MOMENTS = random.Random()  # of the kills
SEEDED = f'randomness.seed={SEED}'

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def same_moments(request):
    """Where in an iteration a kill falls still depends on the machine."""
    MOMENTS.seed(request.node.name)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Data and `toy.py`."""
    folder = tmp_path_factory.mktemp('exact')
    make_data(folder / 'data')
    (folder / 'toy.py').write_text(exact_config_text(folder / 'data', delay=0.004))
    return folder


def start(folder, work_dir, *args, config='toy.py', processes=1):
    """Start training in the background."""
    env = environment(ROOT)
    if processes == 1:
        command = [*TRAIN, config]
    else:
        env['PATH'] = f'{Path(sys.executable).parent}:{env["PATH"]}'
        env['PORT'] = str(free_port())
        command = [str(ROOT / 'tools' / 'dist_train.sh'), config, str(processes)]
    Path(folder, work_dir).mkdir(exist_ok=True)
    with open(Path(folder, work_dir, 'printed.txt'), 'a') as printed:
        return subprocess.Popen(
            [*command, '--work-dir', work_dir, *args],
            cwd=folder,
            env=env,
            stdout=printed,
            stderr=subprocess.STDOUT,
        )


def finish(folder, work_dir, *args, **kwargs):
    """Train to the end; return what was recorded."""
    process = start(folder, work_dir, *args, **kwargs)
    status = process.wait(timeout=300)
    printed = Path(folder, work_dir, 'printed.txt').read_text()
    assert status == 0, printed
    return read_losses(folder / work_dir), printed


def interrupt(folder, work_dir, after, *args, **kwargs):
    """Train, and kill every process at a random moment after some iterations."""
    process = start(folder, work_dir, *args, **kwargs)
    deadline = time.monotonic() + 300
    while len(read_losses(folder / work_dir)) < after:
        printed = Path(folder, work_dir, 'printed.txt')
        assert process.poll() is None, printed.read_text()
        assert time.monotonic() < deadline, printed.read_text()
        time.sleep(0.002)
    time.sleep(MOMENTS.uniform(0, 0.05))
    assert process.poll() is None, 'the run was over before it could be killed'
    kill_all(process)


def assert_repeats(recorded, reference):
    """Every iteration, the repeated ones too, is that of the reference, to the last bit."""
    expected = {row[0]: row for row in reference}
    assert [row[0] for row in reference] == list(range(1, len(reference) + 1))
    assert all(row == expected[row[0]] for row in recorded)
    assert {row[0] for row in recorded} == set(expected)
    numbers = [row[0] for row in recorded]
    assert numbers.count(numbers[-1]) == 1
    assert any(b != a + 1 for a, b in zip(numbers, numbers[1:])) or len(numbers) == len(expected)


def assert_same_state(one, other):
    """Weights and optimizer state of two checkpoints are equal to the last bit."""
    one, other = safe_load(one), safe_load(other)
    for name, value in one['state_dict'].items():
        assert torch.equal(value, other['state_dict'][name]), name
    states = (one['optimizer']['state'], other['optimizer']['state'])
    for key, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][key][name]))
    assert one['param_schedulers'] == other['param_schedulers']


@pytest.fixture(scope='module')
def reference(folder):
    """Losses of an uninterrupted run of one process without workers."""
    recorded, _ = finish(folder, 'reference', '--cfg-options', SEEDED)
    assert len({loss for _, loss, _ in recorded}) == LAST
    return recorded


@pytest.mark.parametrize(('workers', 'cut'), [(0, False), (2, True)])
def test_killed_and_resumed(folder, reference, workers, cut):
    """No seed is given on resuming: it is the checkpoint's. The newest one may be cut off."""
    work_dir = f'killed_{workers}'
    options = ('--cfg-options', f'train_dataloader.num_workers={workers}')
    interrupt(folder, work_dir, MOMENTS.randint(11, 24), *options, SEEDED)
    saved = (folder / work_dir).glob('iter_*.pth')
    newest = max(saved, key=lambda path: int(path.stem.removeprefix('iter_')))
    if cut:
        os.truncate(newest, os.path.getsize(newest) // 2)
    recorded, printed = finish(folder, work_dir, '--resume', 'auto', *options)
    assert (f'{newest.name} cannot be read as a checkpoint' in printed) == cut
    assert 'a resumed run will differ' not in printed
    assert_repeats(recorded, reference)
    final = f'iter_{LAST}.pth'
    assert_same_state(folder / work_dir / final, folder / 'reference' / final)
    assert not list((folder / work_dir).glob('*.tmp'))


def test_two_processes(folder):
    options = ('--cfg-options', 'train_dataloader.num_workers=1', 'train_dataloader.batch_size=2')
    whole, _ = finish(folder, 'two', *options, SEEDED, processes=2)
    interrupt(folder, 'two_killed', MOMENTS.randint(6, 20), *options, SEEDED, processes=2)
    recorded, _ = finish(folder, 'two_killed', '--resume', 'auto', *options, processes=2)
    assert_repeats(recorded, whole)
    final = f'iter_{LAST}.pth'
    assert_same_state(folder / 'two_killed' / final, folder / 'two' / final)


def test_from_one_process_to_two(folder):
    """At the same total batch; without dropout, whose numbers are each process's own."""
    options = ('--cfg-options', 'model.drop=0.0', 'default_hooks.checkpoint.max_keep_ckpts=-1')
    whole, _ = finish(folder, 'one', *options, SEEDED)
    (folder / 'one_two').mkdir()
    shutil.copy(folder / 'one' / 'iter_15.pth', folder / 'one_two')
    options += ('train_dataloader.batch_size=2',)
    recorded, _ = finish(folder, 'one_two', '--resume', 'auto', *options, processes=2)
    assert [row[0] for row in recorded] == list(range(16, LAST + 1))
    for (_, loss, lr), (_, expected_loss, expected_lr) in zip(recorded, whole[15:]):
        assert loss == pytest.approx(expected_loss, rel=2e-6)
        assert lr == expected_lr


@pytest.fixture(scope='module')
def lvis(tmp_path_factory):
    """Options that make the LVIS demo train in seconds, on data of its own."""
    pytest.importorskip('mmdet')
    from eva_mm.demo.generate import generate_lvis
    from tests.helpers import detector_options

    folder = tmp_path_factory.mktemp('lvis')
    generate_lvis(folder / 'data', num_train=14, num_val=6)
    options = flat(dict(model=detector_options(pad_size=(256, 256), img_size=256, num_classes=24)))
    options |= {
        'model.roi_head.bbox_head.loss_cls.num_sampled_classes': 6,
        'model.backbone.drop_path_rate': 0.3,
        'model.test_cfg.rcnn.max_per_img': 5,
        'train_dataloader.batch_size': 2,
        'train_cfg.max_iters': 9,
        'train_cfg.val_interval': 4,
        'default_hooks.checkpoint.interval': 3,
        'default_hooks.checkpoint.max_keep_ckpts': 2,
        'default_hooks.logger.interval': 1,
        'param_scheduler.0.end': 3,
        'param_scheduler.1.milestones': '[6,8]',
    }
    for part in ('train', 'val'):
        options[f'{part}_dataloader.dataset.data_root'] = f'{folder}/data/'
    options['val_evaluator.ann_file'] = f'{folder}/data/annotations/lvis_v1_val.json'
    return folder, options


def flat(tree, prefix=''):
    """{'a': {'b': 1}} -> {'a.b': 1}."""
    rows = {}
    for key, value in tree.items():
        rows |= flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
    return rows


def test_the_detector(lvis):
    """The demo of the LVIS leaf: jitter, proposals, federated loss, stochastic depth."""
    folder, options = lvis
    config = folder / 'lvis.py'
    config.write_text(
        f'_base_ = {str(ROOT / "configs" / "demo" / "lvis.py")!r}\n'
        "custom_imports = dict(imports=['eva_mm.detection', 'tests.engine.exact_task'])\n"
        "custom_hooks = [dict(type='FederatedClassCountsHook'), dict(type='LossRecorder')]\n"
    )
    args = [f'{key}={str(value).replace(" ", "")}' for key, value in options.items()]
    args = ('--cfg-options', *args, 'train_dataloader.num_workers=1')
    whole, _ = finish(folder, 'whole', *args, SEEDED, config='lvis.py')
    interrupt(folder, 'killed', MOMENTS.randint(4, 7), *args, SEEDED, config='lvis.py')
    recorded, printed = finish(folder, 'killed', '--resume', 'auto', *args, config='lvis.py')
    assert 'a resumed run will differ' not in printed
    assert_repeats(recorded, whole)
    assert_same_state(folder / 'killed' / 'iter_9.pth', folder / 'whole' / 'iter_9.pth')
