"""Training in shards computes what one process computes, and its checkpoints fit any number."""

import copy
import json
import math
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import CheckpointLoader
from torch.distributed import checkpoint as dcp

from eva_mm.engine import launch, sharding
from eva_mm.engine.checkpoint import safe_load
from eva_mm.engine.compilation import transformer_blocks
from eva_mm.engine.saving import put_in_place
from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.errors import InputError, UsageError
from eva_mm.zoo.sharded import read_index, read_tensors
from tests.engine import sharded_task
from tests.engine.exact_task import SEED, environment, read_losses
from tests.engine.sharded_task import COMPILED, EVA, MIM
from tests.helpers import free_port, relative_error
from tests.toy_task import make_data

ROOT = Path(__file__).resolve().parents[2]
HALF = {'train_dataloader.batch_size': 2}  # of one process's batch
ALL_KEPT = {'default_hooks.checkpoint.max_keep_ckpts': -1}
LAST = 30


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Data and `toy.py`."""
    folder = tmp_path_factory.mktemp('sharded')
    make_data(folder / 'data')
    (folder / 'toy.py').write_text(sharded_task.config_text(folder / 'data'))
    return folder


def described(folder, work_dir, options=(), **kwargs):
    """Arguments of a run."""
    name = f'{work_dir}_{time.time_ns()}'
    options = {'randomness.seed': SEED, 'experiment_name': name} | dict(options)
    return (
        dict(
            config=str(folder / 'toy.py'),
            cfg_options=copy.deepcopy(options),
            work_dir=str(folder / work_dir),
            strategy='fsdp',
        )
        | kwargs
    )


def alone(folder, work_dir, options=(), **kwargs):
    """Train in this process; return the Runner, or the text of an expected error."""
    return sharded_task.train(described(folder, work_dir, options, **kwargs))


def losses(folder, work_dir):
    return [loss for _, loss, _ in read_losses(folder / work_dir)]


@pytest.fixture(scope='module')
def one(folder):
    """Runner of one process that was trained to the end with `--strategy fsdp`."""
    return alone(folder, 'one', ALL_KEPT)


# ------------------------------------------------------------------------------------- the config


def test_strategies_and_folder_names():
    cfg = Config(dict(default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False))))
    sharding.set_strategy(cfg, None)
    assert not sharding.is_sharded_run(cfg)
    sharding.set_strategy(cfg, 'fsdp')
    assert sharding.is_sharded_run(cfg)
    assert cfg.default_hooks.checkpoint.filename_tmpl == 'iter_{}'
    sharding.set_strategy(cfg, 'ddp')
    assert not sharding.is_sharded_run(cfg)
    assert cfg.default_hooks.checkpoint.filename_tmpl == 'iter_{}.pth', 'a file again'
    with pytest.raises(UsageError, match='ddp or fsdp, not zero'):
        sharding.set_strategy(cfg, 'zero')
    with pytest.raises(UsageError, match='runner of its own, FlexibleRunner'):
        sharding.set_strategy(Config(dict(runner_type='FlexibleRunner')), 'fsdp')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(optim_wrapper=dict(type='AmpOptimWrapper')), 'AmpOptimWrapper'),
        (dict(custom_hooks=[dict(type='EMAHook')]), r'moving average of the weights \(EMAHook\)'),
    ],
)
def test_what_cannot_be_trained_in_shards_is_refused(options, message):
    cfg = Config(dict(runner_type='ShardedRunner', **options))
    with pytest.raises(UsageError, match=message):
        sharding.check_sharded_training(cfg)
    sharding.check_sharded_training(Config(options))


def test_option_of_the_tool(folder, capsys):
    main = runpy.run_path(str(ROOT / 'tools' / 'train.py'))['main']
    dry_run = [f'{folder}/toy.py', '--dry-run', '--gpus', '2', '--work-dir', f'{folder}/dry']
    assert main([*dry_run, '--strategy', 'fsdp']) == 0
    assert 'AdamW state, 1 of 2 parts' in capsys.readouterr().out
    assert main(dry_run) == 0
    assert 'gradient buckets of DistributedDataParallel' in capsys.readouterr().out


def test_bytes_that_are_whole_at_a_time():
    model = torch.nn.Module()
    model.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(5, 5)])
    model.decoder_blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    model.head = torch.nn.Linear(7, 1)
    assert len(transformer_blocks(model)) == 3
    assert sharding.whole_bytes(model) == 4 * (2 * 8 + 4 * 30)


# ------------------------------------------------------------------------------------ one process


def test_one_process_equals_the_plain_runner_to_the_last_bit(folder, one):
    alone(folder, 'plain', strategy=None)
    assert len(losses(folder, 'plain')) == LAST
    assert read_losses(folder / 'one') == read_losses(folder / 'plain')
    plain = safe_load(folder / 'plain' / f'iter_{LAST}.pth')
    for saved in (f'iter_{LAST}', f'iter_{LAST}.pth'):
        state = CheckpointLoader.load_checkpoint(str(folder / 'one' / saved))
        assert state['state_dict'].keys() == plain['state_dict'].keys()
        for name, value in plain['state_dict'].items():
            assert torch.equal(state['state_dict'][name], value), name
        unequal = {'cfg', 'experiment_name', 'time'}
        assert {k: v for k, v in state['meta'].items() if k not in unequal} == {
            k: v for k, v in plain['meta'].items() if k not in unequal
        }
    best = (folder / 'one').glob('best_*')
    assert [sharding.is_sharded(path) for path in best] == [True]


def test_resumed_in_one_process(folder, one):
    (folder / 'again').mkdir()
    shutil.copytree(folder / 'one' / 'iter_10', folder / 'again' / 'iter_10')
    shutil.copytree(folder / 'one' / 'iter_15', folder / 'again' / 'iter_15')
    os.truncate(folder / 'again' / 'iter_15' / 'state.pth', 1000)
    for number in (17, 18):
        shutil.copytree(folder / 'one' / 'iter_15', folder / 'again' / f'iter_{number}')
    shards = folder / 'again' / 'iter_17' / '__0_0.distcp'
    os.truncate(shards, shards.stat().st_size // 2)
    (folder / 'again' / 'iter_18' / 'state.pth').unlink()
    (folder / 'again' / 'iter_20.tmp').mkdir()
    alone(folder, 'again', resume='auto')
    assert read_losses(folder / 'again') == read_losses(folder / 'one')[10:]
    names = {path.name for path in (folder / 'again').glob('iter_*')}
    assert {'iter_25', 'iter_30', 'iter_30.pth'} <= names
    assert not {'iter_15', 'iter_20', 'iter_20.tmp'} & names, 'neither outdated nor half-written'


@pytest.mark.parametrize('resume', ['auto', 'iter_10', None])
def test_a_kill_between_two_renames_loses_nothing(folder, one, tmp_path, resume):
    """A checkpoint written anew makes room for itself first."""
    shutil.copytree(folder / 'one' / 'iter_10', tmp_path / 'iter_10.old.tmp')
    shutil.copytree(folder / 'one' / 'iter_10', tmp_path / 'iter_10.tmp')
    resume = f'{tmp_path}/iter_10' if resume == 'iter_10' else resume
    options = {'train_cfg.max_iters': 11 if resume else 2}
    run = described(folder, 'killed', options, resume=resume) | dict(work_dir=str(tmp_path))
    sharded_task.train(run)
    assert read_losses(tmp_path)[0][0] == (11 if resume else 1)
    assert safe_load(tmp_path / 'iter_10')['meta']['iter'] == 10
    assert not list(tmp_path.glob('*.tmp'))


def test_a_failed_rename_is_undone(tmp_path):
    (tmp_path / 'iter_5').mkdir()
    (tmp_path / 'iter_5' / 'kept').touch()
    with pytest.raises(FileNotFoundError):
        put_in_place(str(tmp_path / 'absent'), str(tmp_path / 'iter_5'))
    assert [path.name for path in tmp_path.rglob('*')] == ['iter_5', 'kept']


def test_each_strategy_refuses_the_checkpoint_of_the_other(folder, one):
    path = str(folder / 'one' / 'iter_15')
    with pytest.raises(UsageError, match='iter_15 was saved by --strategy fsdp.*load_from'):
        launch.prepare_train_config(**described(folder, 'x', strategy='ddp', resume=path))
    with pytest.raises(UsageError, match='iter_30.pth holds no state of a run'):
        launch.prepare_train_config(**described(folder, 'x', resume=f'{folder}/one/iter_30.pth'))


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (
            {'model.backbone.depth': 4},
            CheckpointMismatchError,
            r'missing in the checkpoint \(4\):\n +backbone.blocks.3.norm.{bias,weight}',
        ),
        ({'optim_wrapper.paramwise_cfg.layer_decay': 1.0}, InputError, 'parameters per group'),
    ],
)
def test_another_model_or_optimizer_is_refused(folder, one, options, error, message):
    run = described(folder, 'misfit', options, resume=str(folder / 'one' / 'iter_15'))
    with pytest.raises(error, match=message):
        launch.build_runner(launch.prepare_train_config(**run)).train()


def test_weights_of_a_folder_are_started_from(folder, one):
    options = {'load_from': str(folder / 'one' / 'iter_15'), 'train_cfg.max_iters': 1}
    alone(folder, 'started', options)
    assert losses(folder, 'started')[0] < 0.9 * losses(folder, 'one')[0]


def test_failed_write_leaves_what_was_there(folder, one, monkeypatch):
    path = folder / 'one' / 'iter_25'
    before = safe_load(path)['state_dict']

    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='iter_25 could not be written: .*No space left'):
        one.save_checkpoint(str(folder / 'one'), 'iter_25')
    monkeypatch.undo()
    after = safe_load(path)['state_dict']
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not list((folder / 'one').glob('*.tmp'))
    one.save_checkpoint(str(folder / 'one'), 'iter_25')
    after = safe_load(path)['state_dict']
    assert not all(torch.equal(after[name], value) for name, value in before.items())
    assert not list((folder / 'one').glob('*.tmp'))
    with pytest.raises(UsageError, match='file systems only'):
        one.save_checkpoint('s3://bucket', 'iter_25')


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_code_of_a_folder_is_run(folder, one, tmp_path):
    shutil.copytree(folder / 'one' / 'iter_5', tmp_path / 'iter_5')
    (tmp_path / 'iter_5' / '.metadata').write_bytes(pickle.dumps(Malicious(tmp_path / 'run')))
    with pytest.raises(InputError, match=r'asks for the Python object pathlib.Path.touch|getattr'):
        safe_load(tmp_path / 'iter_5')
    assert not (tmp_path / 'run').exists()


def test_values_that_would_be_unpickled_are_refused(tmp_path):
    """PyTorch reads what is no tensor without `weights_only`."""
    values = {'model.x': torch.zeros(2), 'model.y': Malicious(tmp_path / 'run')}
    dcp.save(values, storage_writer=dcp.FileSystemWriter(tmp_path / 'saved'), no_dist=True)
    with pytest.raises(InputError, match='values that are no tensors'):
        safe_load(tmp_path / 'saved')
    with pytest.raises(InputError, match='values that are no tensors'):
        read_tensors(tmp_path / 'saved', {'model.x': torch.ones(2)})
    assert not (tmp_path / 'run').exists()


def test_broken_folders_are_told(folder, one, tmp_path):
    shutil.copytree(folder / 'one' / 'iter_5', tmp_path / 'iter_5')
    os.truncate(tmp_path / 'iter_5' / '__0_0.distcp', 2000)
    with pytest.raises(InputError, match='sharded checkpoint .*iter_5 cannot be read'):
        safe_load(tmp_path / 'iter_5')
    os.truncate(tmp_path / 'iter_5' / '.metadata', 100)
    with pytest.raises(InputError, match='metadata cannot be read as the index'):
        safe_load(tmp_path / 'iter_5')


def test_index_allows_what_pytorch_writes(tmp_path):
    values = {
        str(dtype): torch.zeros(3, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)
    }
    dcp.save(values, storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    assert read_index(tmp_path).state_dict_metadata.keys() == values.keys()


# ---------------------------------------------------------------------------------- two processes

RUNS = dict(
    two=HALF | ALL_KEPT,
    one_two=HALF,
    eva_two=EVA | HALF | {'model.activation_checkpointing': True, 'model.poisoned': 3},
    amp_two=EVA | HALF,
    mim_two=MIM | HALF | COMPILED,
    accumulated_two=EVA | {'train_dataloader.batch_size': 1, 'compile.backend': 'eager'},
    apart=EVA | HALF,
)
EXTRA = dict(
    one_two=dict(resume='auto'),
    amp_two=dict(amp=True),
    accumulated_two=dict(accumulate=2),
    apart=dict(apart=True, error=True),
)


@pytest.fixture(scope='module')
def two(folder, one):
    """Work dirs of :data:`RUNS`, trained by two processes; name -> what each one told of it."""
    (folder / 'one_two').mkdir()
    shutil.copytree(folder / 'one' / 'iter_15', folder / 'one_two' / 'iter_15')
    runs = []
    for name, options in RUNS.items():
        runs.append(described(folder, name, options, **EXTRA.get(name, {})))
    (folder / 'runs.json').write_text(json.dumps(runs))
    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node=2']
    done = subprocess.run(
        [
            *command,
            f'--master_port={free_port()}',
            sharded_task.__file__,
            str(folder / 'runs.json'),
        ],
        cwd=folder,
        env=environment(ROOT),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [json.loads((folder / f'runs.json.{rank}').read_text()) for rank in range(2)]
    return {name: (told[0][i], told[1][i]) for i, name in enumerate([*RUNS, 'failed_saves'])}


def facts_of_runs(two):
    return {name: facts for name, facts in two.items() if name not in ('apart', 'failed_saves')}


@pytest.mark.slow
def test_two_processes_hold_a_part_each(two):
    for name, facts in facts_of_runs(two).items():
        parts = [fact['share'] for fact in facts]
        assert sum(parts) == pytest.approx(1), name
        assert max(parts) < 0.6, name


@pytest.mark.slow
def test_each_block_is_put_together_for_itself(two):
    for name, facts in facts_of_runs(two).items():
        if name not in ('two', 'one_two'):  # their model has other blocks
            assert [fact['sharded_blocks'] for fact in facts] == [2, 2], name
            assert [fact['blocks'] for fact in facts] == [2, 2], name


@pytest.mark.slow
def test_gradients_are_the_mean_over_processes(two, one):
    """Losses would not tell: Adam divides any factor away."""
    expected = sharded_task.grad_norms(one)
    assert len(expected) == LAST
    for facts in two['two']:
        assert facts['grad_norms'] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused(folder, two):
    """By every process, before training and before anything is written."""
    for text in (*two['apart'], *(texts[0] for texts in two['failed_saves'])):
        assert 'machines share' in text
        assert 'processes 1 do not see what process 0 writes' in text
    for rank in range(2):
        assert not list((folder / f'apart_{rank}').glob('iter_*'))


@pytest.mark.slow
def test_all_processes_hear_of_a_state_that_is_not_written(folder, two):
    (_, first), (_, second) = two['failed_saves']
    assert 'No space left on device' in first
    assert 'No space left on device' in second
    assert not list(folder.glob('*/iter_99*')) + list(folder.glob('*/of_*/*'))


@pytest.mark.slow
def test_losses_of_two_processes_are_those_of_one(folder, two, one):
    """Layer decay, frozen parameters, clipped gradients, fused AdamW, validation in between."""
    assert losses(folder, 'two') == pytest.approx(losses(folder, 'one'), rel=1e-5)
    shards, whole = (safe_load(folder / 'two' / f'iter_{LAST}{end}') for end in ('', '.pth'))
    assert shards['state_dict'].keys() == whole['state_dict'].keys()
    for name, value in whole['state_dict'].items():
        assert torch.equal(shards['state_dict'][name], value), name


@pytest.mark.slow
def test_saved_by_one_process_and_resumed_by_two(folder, two, one):
    rows = read_losses(folder / 'one_two')
    assert [row[0] for row in rows] == list(range(16, LAST + 1))
    assert [row[1] for row in rows] == pytest.approx(losses(folder, 'one')[15:], rel=1e-5)
    assert [row[2] for row in rows] == [row[2] for row in read_losses(folder / 'one')[15:]]
    ours, theirs = (safe_load(folder / run / 'iter_30')['state_dict'] for run in ('one_two', 'one'))
    for name, value in theirs.items():
        assert relative_error(ours[name], value) < 1e-4, name


@pytest.mark.slow
def test_saved_by_two_processes_and_resumed_by_one(folder, two, one):
    (folder / 'two_one').mkdir()
    shutil.copytree(folder / 'two' / 'iter_20', folder / 'two_one' / 'iter_20')
    alone(folder, 'two_one', resume='auto')
    assert losses(folder, 'two_one') == pytest.approx(losses(folder, 'one')[20:], rel=1e-5)


@pytest.mark.slow
def test_eva_in_shards(folder, two):
    """Recomputed or compiled blocks, bf16, accumulation, and a loss of NaN that is skipped."""
    alone(folder, 'eva', EVA | {'model.poisoned': 3})
    alone(folder, 'amp', EVA, amp=True)
    alone(folder, 'accumulated', EVA | {'train_dataloader.batch_size': 2}, accumulate=2)
    expected = losses(folder, 'eva')
    assert math.isnan(expected[2])
    assert expected[-1] < 0.8 * expected[0]
    assert losses(folder, 'eva_two') == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert losses(folder, 'amp_two') == pytest.approx(losses(folder, 'amp'), rel=2e-2)
    passes = losses(folder, 'accumulated')
    assert len(passes) == 20
    assert losses(folder, 'accumulated_two') == pytest.approx(passes, rel=1e-5)


@pytest.mark.slow
def test_masked_image_modelling_in_shards(folder, two):
    """The frozen teacher is in no process's shards; the weights fit the plain model."""
    alone(folder, 'mim', MIM)
    assert losses(folder, 'mim_two') == pytest.approx(losses(folder, 'mim'), rel=1e-5)
    names = safe_load(folder / 'mim_two' / 'iter_10.pth')['state_dict'].keys()
    assert names == safe_load(folder / 'mim' / 'iter_10.pth')['state_dict'].keys()
    assert 'mask_token' in names
    assert not any('teacher' in name for name in names)
    # Among several processes hooks that put weights together stay outside of what is compiled.
    for fact in two['mim_two']:
        assert fact['compiled'] == dict(forward=2, call=0, teacher=1)


@pytest.mark.slow
def test_a_teacher_is_compiled_with_its_student(folder):
    """Under the plain Runner its weights, and blocks, are there later than the student's."""
    alone(folder, 'mim_plain', MIM, strategy=None)
    runner = alone(folder, 'mim_compiled', MIM | COMPILED, strategy=None)
    assert sharded_task.compiled(runner) == dict(forward=0, call=2, teacher=1)
    expected = losses(folder, 'mim_plain')
    assert losses(folder, 'mim_compiled') == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_compiled_step(folder):
    """mmengine's own way, in one process: the guard of losses is inside the step."""
    torch._dynamo.reset()
    short = EVA | {'train_cfg.max_iters': 5, 'model.poisoned': 3}
    alone(folder, 'not_compiled', short)
    alone(folder, 'compiled', short | {'compile.backend': 'eager'})
    expected = losses(folder, 'not_compiled')
    assert losses(folder, 'compiled') == pytest.approx(expected, rel=1e-5, nan_ok=True)
