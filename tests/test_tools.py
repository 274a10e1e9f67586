"""The tools as a user runs them: in a process of their own, from a foreign folder."""

import json
import os
import pickle
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.toy_task import config_text, make_data

ROOT = Path(__file__).resolve().parents[1]
TRAIN, TEST = (str(ROOT / 'tools' / f'{name}.py') for name in ('train', 'test'))


def call(command, folder, **environment):
    """Run a command in a folder; return its status and all it printed."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **environment}
    env['CUDA_VISIBLE_DEVICES'] = '-1'
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def tool(*args, folder, **environment):
    return call([sys.executable, *args], folder, **environment)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder with data, `configs/toy/small.py`, and a finished run in the default work dir."""
    folder = tmp_path_factory.mktemp('user')
    make_data(folder / 'data')
    (folder / 'configs' / 'toy').mkdir(parents=True)
    (folder / 'configs' / 'toy' / 'small.py').write_text(config_text(folder / 'data'))
    status, text = tool(TRAIN, 'configs/toy/small.py', folder=folder)
    assert status == 0, text
    return folder, text


CONFIG = 'configs/toy/small.py'
CHECKPOINT = 'work_dirs/toy/small/iter_30.pth'


@pytest.mark.parametrize('path', [TRAIN, TEST])
def test_help_needs_no_heavy_import(path, tmp_path):
    status, text = tool('-X', 'importtime', path, '--help', folder=tmp_path)
    assert status == 0
    assert '--cfg-options' in text
    imported = set(re.findall(r'\|\s+([\w.]+)$', text, re.MULTILINE))
    assert 'argparse' in imported
    assert not imported & {'torch', 'mmengine.runner', 'mmcv', 'mmdet', 'eva_mm'}


def test_training_writes_to_the_default_work_dir_and_learns(trained):
    folder, text = trained
    assert (folder / CHECKPOINT).is_file()
    assert re.search(r'toy/accuracy: 100\.0', text)
    assert 'eta:' in text


def test_testing_prints_the_metric_and_dumps_predictions(trained, tmp_path):
    folder, _ = trained
    out = tmp_path / 'predictions.pkl'
    status, text = tool(TEST, CONFIG, CHECKPOINT, '--out', out, folder=folder)
    assert status == 0, text
    assert re.search(r'toy/accuracy: 100\.0', text)
    predictions = pickle.loads(out.read_bytes())
    assert [p['label'] for p in predictions] == [0, 1] * 8
    # The config of the training is not replaced by that of the test.
    saved = {path.name for path in (folder / CHECKPOINT).parent.glob('*.py')}
    assert saved == {Path(CONFIG).name, f'test_{Path(CONFIG).name}'}


def test_saved_results_are_evaluated_without_a_model(trained, tmp_path):
    folder, _ = trained
    results = tmp_path / 'results.json'
    results.write_text(json.dumps([dict(predicted=i % 4, label=i % 2) for i in range(8)]))
    no_model = 'model.type=NoSuchModel'
    args = (TEST, CONFIG, '--results', results, '--cfg-options', no_model)
    status, text = tool(*args, folder=folder)
    assert status == 0, text
    assert 'toy/accuracy: 50.0' in text
    assert 'toy/classes: 2' in text


@pytest.mark.slow
def test_compiled_training_and_test(trained):
    folder, _ = trained
    short = ('--cfg-options', 'train_cfg.max_iters=2', 'param_scheduler=None')
    status, text = tool(TRAIN, CONFIG, '--compile', '--work-dir', 'compiled', *short, folder=folder)
    assert status == 0, text
    assert 'torch.compile: 3 blocks' in text
    assert (folder / 'compiled' / 'iter_2.pth').is_file()
    status, text = tool(
        TEST, CONFIG, CHECKPOINT, '--compile', '--work-dir', 'compiled', folder=folder
    )
    assert status == 0, text
    assert 'torch.compile: 3 blocks' in text
    assert re.search(r'toy/accuracy: 100\.0', text)


def test_resuming_goes_on_from_the_newest_checkpoint(trained):
    folder, _ = trained
    longer = ('--cfg-options', 'train_cfg.max_iters=32')
    status, text = tool(TRAIN, CONFIG, '--resume', 'auto', *longer, folder=folder)
    assert status == 0, text
    assert 'resumed epoch: 0, iter: 30' in text
    assert (folder / 'work_dirs' / 'toy' / 'small' / 'iter_32.pth').is_file()


def test_resuming_from_nothing_keeps_the_initial_weights(trained):
    folder, _ = trained
    start = f'load_from={folder / CHECKPOINT}'
    args = (TRAIN, CONFIG, '--work-dir', 'fresh', '--resume', '--cfg-options', start)
    status, text = tool(*args, 'train_cfg.max_iters=1', 'train_cfg.val_interval=1', folder=folder)
    assert status == 0, text
    assert f'Load checkpoint from {folder / CHECKPOINT}' in text
    assert 'toy/accuracy: 100.0' in text


def test_mixed_precision_and_scaled_rate(trained):
    folder, _ = trained
    short = ('--cfg-options', 'train_cfg.max_iters=2', 'param_scheduler=None')
    args = ('--amp', '--auto-scale-lr', '--work-dir', 'amp', *short)
    status, text = tool(TRAIN, CONFIG, *args, folder=folder)
    assert status == 0, text
    assert 'Scaling the original LR by 0.5' in text
    saved = (folder / 'amp' / 'small.py').read_text()
    assert 'on_cpu=True' in saved


def test_two_processes_on_cpus(trained):
    folder, _ = trained
    launcher = str(ROOT / 'tools' / 'dist_train.sh')
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    port = str(20000 + os.getpid() % 20000)
    command = [launcher, CONFIG, '2', '--work-dir', 'two']
    status, text = call(command, folder, PATH=path, PORT=port)
    assert status == 0, text
    assert re.search(r'toy/accuracy: 100\.0', text)
    assert 'Distributed training: True' in text
    assert 'GPU number: 2' in text


@pytest.mark.parametrize(
    ('script', 'args', 'called'),
    [
        ('slurm_train.sh', ['CONFIG', '--amp'], 'train.py CONFIG --launcher slurm --amp'),
        (
            'slurm_test.sh',
            ['CONFIG', 'WEIGHTS', '--out', 'a b.pkl'],
            'test.py CONFIG WEIGHTS --launcher slurm --out a b.pkl',
        ),
    ],
)
def test_slurm_scripts_ask_for_the_nodes(tmp_path, script, args, called):
    """`srun` is played by a script that prints what it is given, one argument a line."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    command = [ROOT / 'tools' / script, 'PARTITION', 'JOB', *args]
    path = f'{tmp_path}:{os.environ["PATH"]}'
    status, text = call(command, tmp_path, PATH=path, GPUS='64', SRUN_ARGS='--quiet --exclusive')
    given = text.splitlines()
    assert status == 0
    assert {'--ntasks=64', '--ntasks-per-node=8', '--gres=gpu:8', '--quiet', '--exclusive'} <= set(
        given
    )
    start = next(i for i, line in enumerate(given) if line.endswith('.py'))
    assert ' '.join(given[start:]).endswith(called)
    if 'a b.pkl' in args:
        assert 'a b.pkl' in given  # still one argument


@pytest.mark.parametrize('script', sorted(path.name for path in (ROOT / 'tools').glob('*.sh')))
def test_shell_scripts_tell_their_usage(tmp_path, script):
    status, text = call([ROOT / 'tools' / script], tmp_path)
    assert status != 0
    assert f'{script} ' in text
    assert 'CONFIG' in text


def test_dry_run_reports_and_exits_by_what_is_missing(trained):
    folder, _ = trained
    status, text = tool(TRAIN, CONFIG, '--dry-run', '--gpus', '2', folder=folder)
    assert status == 0, text
    assert 'ready: this run can start' in text
    missing = ('--cfg-options', 'train_dataloader.dataset.ann_file=gone.json')
    status, text = tool(TRAIN, CONFIG, '--dry-run', *missing, folder=folder)
    assert status == 1
    assert f'annotation file: {folder}/data/gone.json' in text
    assert text.rstrip().endswith('cannot start: 1 things missing')


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ((TRAIN, 'configs/toy/smal.py'), 'train.py: config configs/toy/smal.py not found; near: '),
        ((TRAIN, CONFIG, '--resume', 'gone.pth'), 'train.py: --resume: checkpoint gone.pth not'),
        ((TEST, CONFIG, 'gone.pth'), 'test.py: checkpoint gone.pth not found'),
        ((TEST, CONFIG, '--results', 'gone.json'), 'test.py: --results: file gone.json not found'),
        ((TEST, CONFIG), 'give a CHECKPOINT to test, or --results FILE to evaluate'),
        ((TEST, CONFIG, CHECKPOINT, '--out', 'a.txt'), 'should end in .pkl or .pickle'),
        ((TEST, CONFIG, CHECKPOINT, '--tta'), '--tta needs tta_model and tta_pipeline'),
        ((TEST, CONFIG, CHECKPOINT, '--show-dir', 'd'), 'default_hooks.visualization of type'),
    ],
)
def test_mistakes_take_one_line(trained, args, message, monkeypatch, capsys):
    monkeypatch.chdir(trained[0])
    path, *arguments = args
    main = runpy.run_path(path)['main']
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    # Text given to `sys.exit` is printed, and the status is 1; argparse prints by itself.
    assert message in str(stopped.value.code) + capsys.readouterr().err


def test_a_shipped_config_goes_by_its_name(tmp_path):
    """From a folder without `configs/`; nothing but the data and weights may be missing."""
    pytest.importorskip('mmdet')
    tiny = ('model.backbone.size=tiny', 'model.neck.in_channels=192')
    blocks = 'model.backbone.global_block_indexes=[3,7,11]'
    args = ('--dry-run', '--gpus', '64', '--cfg-options', *tiny, blocks)
    status, text = tool(TRAIN, 'lvis/eva_cascade', *args, folder=tmp_path)
    assert status == 1, text
    assert '64 images per update' in text
    assert 'annotation file: data/lvis_v1/annotations/lvis_v1_train.json' in text
    assert re.search(r'cannot start: \d+ things missing', text)


@pytest.mark.slow
def test_the_billion_parameter_dry_run_fits_a_laptop(tmp_path):
    pytest.importorskip('mmdet')
    with open(tmp_path / 'out.txt', 'w+') as out:
        command = [sys.executable, TRAIN, 'lvis/eva_cascade', '--dry-run']
        process = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
        # Of this child alone; RUSAGE_CHILDREN keeps the largest of all before it.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    text = (tmp_path / 'out.txt').read_text()
    assert process.returncode == 1, text
    assert 'base batch: 64, 64 times as many' in text
    assert re.search(r'activations of backbone and neck \(1280 x 1280 px.* \d+\.\d\d GiB', text)
    peak = usage.ru_maxrss / 2**20
    assert peak < 6, f'{peak:.1f} GiB'
    print(f'\npeak memory {peak:.2f} GiB')
