"""A loss that is not finite never reaches the weights; its record runs again, exactly."""

import os
import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.structures import BaseDataElement
from torch import nn

from eva_mm.engine import launch
from eva_mm.engine.exact_data import PositionSeeded
from eva_mm.engine.hooks import non_finite
from eva_mm.engine.hooks.non_finite import (
    NonFiniteLossHook,
    describe,
    digests,
    find_values,
    whole_state,
)
from tests.helpers import free_port
from tests.toy_task import ToyImages, config_text, make_data

ROOT = Path(__file__).resolve().parents[2]
BATCH, ITERATIONS = 4, 12
HUGE = 1e12  # its fourth power is not finite in float32


class FourthPower(nn.Module):
    def forward(self, x):
        return x**4


class Root(nn.Module):
    """Finite at 0, its gradient is not."""

    def forward(self, x):
        return x.sqrt()


@MODELS.register_module(force=True)
class GuardedModel(BaseModel):
    """Overflows for huge images; has an infinite slope for black ones."""

    def __init__(self, backbone, batch_norm=False, limit=None, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.limit = limit
        self.backbone = MODELS.build(backbone)
        width = self.backbone.fpn.out_features
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, 2)
        self.power, self.root = FourthPower(), Root()

    def forward(self, inputs, data_samples, mode='tensor'):
        images = torch.stack(inputs)
        labels = images.new_tensor([sample.label for sample in data_samples], dtype=torch.long)
        logits = self.head(self.dropout(self.norm(self.backbone(images).mean(1)))).float()
        powers = self.power(logits)
        if self.limit is not None and not powers.max() < self.limit:
            raise IndexError('out of the limit')
        brightness = images.abs().mean((1, 2, 3))
        return dict(
            loss_cls=nn.functional.cross_entropy(logits, labels),
            loss_reg=1e-3 * powers.mean(),
            loss_root=1e-3 * self.root(brightness.clamp(max=1) * logits[:, 0] ** 2).mean(),
            accuracy=logits.new_tensor(float('nan')),  # 0 of 0: not a loss
        )


@DATASETS.register_module(force=True)
class GuardedImages(PositionSeeded, ToyImages):
    pass


@TRANSFORMS.register_module(force=True)
class PackGuarded:
    """Random brightness, and what detectors get: tensors beside data samples."""

    def __call__(self, results):
        image = np.load(results['img_path']) * np.random.uniform(0.5, 1.5)
        sample = BaseDataElement(
            metainfo=dict(img_path=results['img_path'], img_id=100 + results['sample_idx']),
            label=results['label'],
        )
        return dict(inputs=torch.from_numpy(image.astype(np.float32)), data_samples=sample)


class Spy(Hook):
    """Notes weights and rates after each iteration."""

    def __init__(self):
        self.weights, self.rates = [], []

    def before_train(self, runner):
        self.weights.append(flat(runner.model))

    def after_train_iter(self, runner, **kwargs):
        self.weights.append(flat(runner.model))
        self.rates.append(runner.optim_wrapper.get_lr()['lr'][0])

    def changed(self):
        """Iterations that changed the weights."""
        pairs = zip(self.weights, self.weights[1:])
        return [i for i, (a, b) in enumerate(pairs) if not torch.equal(a, b)]


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).cpu().clone()


def poison(folder, iteration, place=1, value=HUGE):
    """Make the image that stands at a place of an iteration's batch a spoilt one; its name."""
    path = folder / 'data' / 'images' / f'{iteration * BATCH + place}.npy'
    np.save(path, np.full_like(np.load(path), value))
    return path


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for one another on models this small
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_data(tmp_path / 'data', BATCH * ITERATIONS)
    (tmp_path / 'guarded.py').write_text(
        config_text(tmp_path / 'data')
        + f"""
custom_imports = dict(imports=['tests.engine.test_non_finite', 'eva_mm.engine'])
model['type'] = 'GuardedModel'
dataset.update(type='GuardedImages', pipeline=[dict(type='PackGuarded')])
train_dataloader = dict(
    batch_size={BATCH}, num_workers=0, dataset=dataset,
    sampler=dict(type='ExactInfiniteSampler', shuffle=False),
)
val_dataloader = val_evaluator = val_cfg = None
test_dataloader = test_evaluator = test_cfg = None
train_cfg = dict(type='IterBasedTrainLoop', max_iters={ITERATIONS})
default_hooks['checkpoint']['interval'] = 100
default_hooks['seed'] = dict(type='IterationSeedHook')
default_hooks['non_finite'] = dict(type='NonFiniteLossHook')
randomness = dict(seed=3)
"""
    )
    return tmp_path


def train(folder, name='run', **options):
    """Train in this process; the Runner, with a spy that noted every iteration."""
    cfg = Config.fromfile(folder / 'guarded.py')
    options = {key.replace('__', '.'): value for key, value in options.items()}
    cfg.merge_from_dict(options)
    cfg.work_dir = str(folder / name)
    cfg.experiment_name = f'{folder.name}_{name}'
    runner = launch.build_runner(cfg)
    runner.spy = Spy()
    runner.register_hook(runner.spy)
    try:
        runner.train()
    except FloatingPointError as error:
        runner.error = str(error)
    else:
        runner.error = None
    return runner


def record_of(folder, iteration, name='run'):
    path = folder / name / f'non_finite_iter_{iteration}.pth'
    return torch.load(path, weights_only=True)


def replayed(capsys, *args):
    """Status and output of tools/replay.py."""
    main = runpy.run_path(str(ROOT / 'tools' / 'replay.py'))['main']
    capsys.readouterr()
    status = main([str(arg) for arg in args])
    return status, capsys.readouterr().out


def test_stops_with_weights_from_before_the_step(folder):
    guilty = poison(folder, 5)
    runner = train(folder)
    assert 'the loss is not finite in iteration 6 of 12' in runner.error
    assert re.search(r'loss=inf.* loss_cls=[\d.e+]+, loss_reg=inf', runner.error)
    files = re.findall(r'(\d+)\.npy', runner.error)
    assert files == ['20', '21', '22', '23']
    assert str(guilty) in runner.error
    assert 'weights before the step: all finite' in runner.error
    clean = train(folder, 'clean', train_cfg__max_iters=5)
    assert clean.error is None
    assert torch.equal(flat(runner.model), flat(clean.model))
    record = record_of(folder, 5)
    state = {k: v.cpu() for k, v in clean.model.state_dict().items()}
    assert record['state_dict'].keys() == state.keys()
    assert all(torch.equal(record['state_dict'][k], state[k]) for k in state)
    assert (record['iteration'], record['seed'], record['world_size']) == (5, 3, 1)
    assert record['ranks'][0]['sample_ids'] == [120, 121, 122, 123]
    assert record['autocast'] is None
    assert not list((folder / 'run').glob('*.tmp'))


def test_no_record_on_request(folder):
    poison(folder, 2)
    runner = train(folder, default_hooks__non_finite__record=False)
    assert 'iteration 3 of 12' in runner.error
    assert 'debug record' not in runner.error
    assert not list((folder / 'run').glob('non_finite*'))


def test_a_record_that_cannot_be_written_does_not_hide_the_loss(folder):
    poison(folder, 2)
    (folder / 'run' / 'non_finite_iter_2.pth').mkdir(parents=True)
    runner = train(folder)
    assert 'loss_reg=inf' in runner.error
    assert re.search(r'no debug record: .*non_finite_iter_2\.pth', runner.error)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_skipped_steps_change_nothing_but_the_schedule(folder, accumulate):
    poison(folder, 4)
    poison(folder, 9)
    options = dict(optim_wrapper__accumulative_counts=accumulate)
    runner = train(folder, default_hooks__non_finite__max_skips=2, **options)
    assert runner.error is None
    updates = {1: set(range(ITERATIONS)), 2: {1, 3, 5, 7, 9, 11}}[accumulate]
    # In an accumulated update, one spoilt batch (4 of 4 and 5) spoils the whole.
    expected = updates - {1: {4, 9}, 2: {5, 9}}[accumulate]
    assert set(runner.spy.changed()) == expected
    steps = {int(s['step']) for s in runner.optim_wrapper.optimizer.state.values()}
    assert steps == {len(expected)}
    log = next((folder / 'run').glob('*/*.log')).read_text()
    assert re.search(r'step 1 of at most 2 skipped: .* iteration 5 of 12', log)
    assert re.search(r'step 2 of at most 2 skipped: .* iteration 10 of 12', log)
    assert log.count(f'{4 * BATCH + 1}.npy') == 1
    clean = train(folder, 'clean', train_dataloader__dataset__indices=4, **options)
    assert clean.error is None
    assert runner.spy.rates == clean.spy.rates


def test_one_more_than_allowed_stops_also_after_a_resume(folder):
    poison(folder, 2)
    poison(folder, 8)
    options = dict(default_hooks__non_finite__max_skips=1, default_hooks__checkpoint__interval=6)
    first = train(folder, train_cfg__max_iters=6, **options)
    assert first.error is None
    checkpoint = str(folder / 'run' / 'iter_6.pth')
    second = train(folder, 'resumed', resume=True, load_from=checkpoint, **options)
    assert 'iteration 9 of 12' in second.error
    assert '1 steps were skipped before, max_skips=1' in second.error


def test_running_statistics_survive_a_skipped_step(folder):
    poison(folder, 11, value=np.nan)
    options = dict(model__batch_norm=True, default_hooks__non_finite__max_skips=1)
    runner = train(folder, **options)
    clean = train(folder, 'clean', train_cfg__max_iters=11, **options)
    assert (runner.error, clean.error) == (None, None)
    for name in ('running_mean', 'running_var', 'num_batches_tracked'):
        assert torch.equal(getattr(runner.model.norm, name), getattr(clean.model.norm, name))


def test_gradients_are_checked_where_they_are_clipped(folder, capsys):
    poison(folder, 3, value=0)
    clip = dict(optim_wrapper__clip_grad=dict(max_norm=1.0))
    runner = train(folder, **clip)
    assert 'the gradient norm (nan) is not finite in iteration 4 of 12' in runner.error
    assert f'{3 * BATCH + 1}.npy' in runner.error
    assert flat(runner.model).isfinite().all()
    assert len(runner.spy.changed()) == 3
    unchecked = train(folder, 'off', default_hooks__non_finite__check_gradients=False, **clip)
    assert not flat(unchecked.model).isfinite().all()
    skipping = train(folder, 'skip', default_hooks__non_finite__max_skips=1, **clip)
    assert skipping.error is None
    assert set(range(ITERATIONS)) - set(skipping.spy.changed()) == {3}
    status, text = replayed(capsys, folder / 'run' / 'non_finite_iter_3.pth')
    assert status == 0
    assert 'the output of every module is finite' in text
    assert re.search(r'gradient norm nan; not finite: .*head\.weight', text)
    assert 'with respect to the output of head (Linear)' in text


def test_errors_that_such_values_lead_to(folder, capsys):
    poison(folder, 3)
    # Never skipped: what failed may be a bug that such values only happened to be near.
    runner = train(folder, model__limit=1e30, default_hooks__non_finite__max_skips=1)
    assert 'iteration 4 of 12' in runner.error
    assert 'rank 0: the forward pass ended in IndexError: out of the limit' in runner.error
    status, text = replayed(capsys, folder / 'run' / 'non_finite_iter_3.pth')
    assert status == 0
    assert re.search(r'not finite: power \(FourthPower\)', text)
    assert 'ended in IndexError' in text
    with pytest.raises(IndexError, match='out of the limit'):  # of finite values: any bug
        train(folder, 'finite', model__limit=0.0)


def test_overflow_of_scaled_gradients_is_left_to_the_scaler(folder, monkeypatch):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    scaler = partial(torch.amp.GradScaler, 'cpu')
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)
    poison(folder, 10)
    cfg = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(init_scale=2.0**127))
    monkeypatch.setattr(launch, 'fit_precision', lambda cfg: None)
    clip = dict(optim_wrapper__clip_grad=dict(max_norm=1.0))
    runner = train(folder, **{f'optim_wrapper__{k}': v for k, v in cfg.items()}, **clip)
    assert 'the loss is not finite in iteration 11 of 12' in runner.error
    overflows = 10 - len(runner.spy.changed())
    assert 0 < overflows < 10
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0 ** (127 - overflows)
    assert record_of(folder, 10)['autocast'] == 'bfloat16'


@pytest.mark.parametrize('on_cpu', [False, True])
def test_the_record_runs_again_exactly(folder, capsys, on_cpu):
    """Random brightness and dropout are those of the run, and the guilty module is named."""
    guilty = poison(folder, 7, place=2)
    options = dict(optim_wrapper__type='BF16OptimWrapper', optim_wrapper__on_cpu=on_cpu)
    runner = train(folder, **options)
    assert 'iteration 8' in runner.error
    status, text = replayed(capsys, folder / 'run' / 'non_finite_iter_7.pth')
    assert status == 0
    assert 'identical to the recorded one' in text
    assert str(guilty) in text
    terms = dict(re.findall(r'^ +(\w+) +\S+ +\S+  (same|differs)$', text, re.M))
    names = ('loss', 'loss_cls', 'loss_reg', 'loss_root', 'accuracy')
    assert terms == dict.fromkeys(names, 'same')
    assert re.search(
        r'is not finite: power \(FourthPower\): 0 NaN and \d infinite of 8 values', text
    )
    assert 'its inputs are finite' in text
    assert f'autocast {"bfloat16" if on_cpu else "off"}' in text


def test_replay_tells_what_no_longer_holds(folder, capsys):
    """The guilty image is mended: other content is noticed and the step does not fail."""
    poison(folder, 1, value=np.nan)
    train(folder)
    record = folder / 'run' / 'non_finite_iter_1.pth'
    with pytest.warns(UserWarning, match='Traceback of forward call'):
        status, text = replayed(capsys, record, '--anomaly')
    assert status == 0
    assert re.search(r'backward +Function \S+Backward0. returned nan values', text)
    assert 'backbone.patch_embed (Conv2d)' in text
    poison(folder, 1, value=0.5)
    status, text = replayed(capsys, record, '--device', 'cpu')
    assert status == 1
    assert 'NOT the recorded one' in text
    assert 'the same files with other content' in text
    assert re.search(r'loss_cls +nan +\d\.\d+  differs', text)
    assert re.search(r'gradient norm \d\.\d+; not finite: none', text)


def test_mistakes_take_one_line(folder, capsys):
    poison(folder, 1)
    train(folder)
    path = folder / 'run' / 'non_finite_iter_1.pth'
    torch.save(dict(state_dict={}), folder / 'weights.pth')
    record = record_of(folder, 1)
    record['config'] = record['config'].replace('ExactInfiniteSampler', 'DefaultSampler')
    torch.save(record, folder / 'other.pth')
    for args, message in [
        (['gone.pth'], 'checkpoint gone.pth does not exist'),
        (['weights.pth'], 'weights.pth is no debug record: it lacks autocast, buffers'),
        ([path, '--rank', 1], '--rank 1: the record holds ranks 0 to 0'),
        (['other.pth'], 'BatchSampler over DefaultSampler cannot find the batch again'),
    ]:
        with pytest.raises(SystemExit, match=re.escape(message)):
            replayed(capsys, *args)
    with pytest.raises(ValueError, match='max_skips must not be negative, got -1'):
        NonFiniteLossHook(max_skips=-1)


def test_two_processes_skip_together_and_stop_together(folder, capsys):
    """Images of the second process alone are spoilt."""
    from tests.test_tools import call

    half = BATCH // 2
    poison(folder, 2, place=1)
    guilty = poison(folder, 5, place=3)
    port = str(free_port())
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    options = f'train_dataloader.batch_size={half} default_hooks.non_finite.max_skips=1'.split()
    command = [ROOT / 'tools' / 'dist_train.sh', 'guarded.py', '2', '--work-dir', 'run']
    status, text = call(
        [*command, '--cfg-options', *options], folder, PATH=path, PORT=port, OMP_NUM_THREADS='1'
    )
    assert status != 0, text
    assert len(re.findall(r'step 1 of at most 1 skipped: .* iteration 3 of 12', text)) == 1
    assert re.search(r'train\.py: the loss is not finite in iteration 6 of 12', text)
    record = record_of(folder, 5)
    assert [facts['finite'] for facts in record['ranks']] == [True, False]
    files = [[Path(p).stem for p in facts['img_paths']] for facts in record['ranks']]
    assert files == [['20', '22'], ['21', '23']]
    status, text = replayed(capsys, folder / 'run' / 'non_finite_iter_5.pth')
    assert status == 0
    assert 'rank 1 of 2' in text
    assert 'identical to the recorded one' in text
    assert str(guilty) in text
    assert 'differs' not in text
    _, text = replayed(capsys, folder / 'run' / 'non_finite_iter_5.pth', '--rank', 0)
    assert 'differs' not in text
    assert 'the output of every module is finite' in text


AGREE = """
import sys, torch
from eva_mm.engine.hooks.non_finite import NonFiniteLossHook, _NonFiniteGradients
torch.distributed.init_process_group('gloo')
rank = torch.distributed.get_rank()
try:
    NonFiniteLossHook._clip(lambda: torch.tensor(float('nan') if rank else 1.0))
    sys.stdout.write('passed\\n')
except _NonFiniteGradients:
    sys.stdout.write('agreed\\n')
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


class Sharded(torch.Tensor):
    """Is put together by all ranks, like a DTensor."""

    gathered = 0

    def full_tensor(self):
        Sharded.gathered += 1
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize('rank', [0, 1])
def test_whole_weights_are_kept_by_the_first_rank_alone(monkeypatch, rank):
    monkeypatch.setattr(non_finite, 'get_rank', lambda: rank)
    monkeypatch.setattr(Sharded, 'gathered', 0)
    weights = dict(a=torch.ones(2).as_subclass(Sharded), b=torch.ones(3))
    model = SimpleNamespace(state_dict=lambda: weights)
    assert sorted(whole_state(model)) == ([] if rank else ['a', 'b'])
    assert Sharded.gathered == 1, 'all take part'


@pytest.mark.slow
def test_all_ranks_hear_of_a_norm_that_one_of_them_finds(tmp_path):
    """Of sharded gradients, each rank may know its own part alone."""
    (tmp_path / 'agree.py').write_text(AGREE)
    launcher = ['-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={free_port()}']
    command = [sys.executable, *launcher, str(tmp_path / 'agree.py')]
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': '-1'}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ['agreed', 'agreed'], done.stderr


@pytest.mark.slow
def test_an_error_of_one_process_among_several_ends_the_run(folder):
    from tests.test_tools import call

    guilty = poison(folder, 2, place=3)  # of the second process
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    options = f'train_dataloader.batch_size={BATCH // 2} model.limit=1e30'.split()
    command = [ROOT / 'tools' / 'dist_train.sh', 'guarded.py', '2', '--work-dir', 'run']
    status, text = call(
        [*command, '--cfg-options', *options],
        folder,
        PATH=path,
        PORT=str(free_port()),
        OMP_NUM_THREADS='1',
    )
    assert status != 0
    assert re.search(r'forward pass of rank 1 failed beside .* in iteration 3: batch of ', text)
    assert str(guilty) in text
    assert 'IndexError: out of the limit' in text


def test_messages_name_the_ranks_to_blame_only():
    def facts(rank, value):
        losses = dict(loss=value)
        paths = [f'{rank}.jpg']
        finite = bool(np.isfinite(value))
        empty = dict(sample_ids=[], error=None)
        return dict(rank=rank, losses=losses, finite=finite, img_paths=paths, **empty)

    one = describe('loss', None, 0, 9, [facts(r, np.inf if r == 3 else 1.0) for r in range(64)])
    assert re.findall(r'(\d+)\.jpg', one) == ['3']
    every = describe('loss', None, 0, 9, [facts(r, np.nan) for r in range(64)])
    assert every.endswith('and 60 more ranks')


def test_samples_are_found_in_any_batch():
    samples = [BaseDataElement(metainfo=dict(img_path=f'{i}.jpg')) for i in range(2)]
    assert find_values(dict(inputs=[], data_samples=samples), ['img_path']) == ['0.jpg', '1.jpg']
    nested = [dict(meta=dict(filename='a')), dict(meta=dict(filename='b'))]
    assert find_values(nested, ['img_path', 'filename']) == ['a', 'b']
    assert find_values(dict(img_id=torch.tensor([4, 5])), ['img_id']) == [4, 5]
    a, b = torch.zeros(2, 3), torch.zeros(2, 3)
    b[1, 2] = 1e-30
    assert digests(dict(x=[a], y=(b,)))[0] == digests(a)[0] != digests(b)[0]
