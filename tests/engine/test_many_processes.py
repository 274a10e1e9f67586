"""Several processes, and several passes per update, compute what one does."""

import re
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import DATASETS, FUNCTIONS, MODELS, PARAM_SCHEDULERS
from mmengine.runner import Runner

from eva_mm.engine import exact_data, launch
from eva_mm.engine.checkpoint import safe_load
from eva_mm.engine.exact_data import ExactInfiniteSampler
from eva_mm.engine.hooks.iteration_seed import seed_iteration
from eva_mm.engine.processes import on_first_process
from eva_mm.errors import InputError
from tests.engine.exact_task import SEED, environment, exact_config_text, read_losses
from tests.helpers import free_port, relative_error
from tests.toy_task import make_data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """15 images, which two processes with batches of 2 do not share evenly."""
    folder = tmp_path_factory.mktemp('many')
    make_data(folder / 'data', number=15)
    (folder / 'toy.py').write_text(exact_config_text(folder / 'data'))
    return folder


def spread(folder, tool, *args):
    """Run a tool on two processes; return what it printed."""
    env = environment(ROOT)
    env['PATH'] = f'{Path(sys.executable).parent}:{env["PATH"]}'
    env['PORT'] = str(free_port())
    done = subprocess.run(
        [str(ROOT / 'tools' / tool), 'toy.py', *args],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def prepared(folder, work_dir, options=None, **kwargs):
    """Config of a run of this process."""
    options = {'randomness.seed': SEED, 'experiment_name': f'{work_dir}_{time.time_ns()}'} | (
        options or {}
    )
    return launch.prepare_train_config(
        str(folder / 'toy.py'), options, str(folder / work_dir), **kwargs
    )


def rank_batches(cfg, rank, world_size, monkeypatch):
    """Batches of a process, as its loader makes them."""
    monkeypatch.setattr(exact_data, 'get_dist_info', lambda: (rank, world_size))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    sampler = ExactInfiniteSampler(dataset, seed=SEED)
    collate = FUNCTIONS.get('default_collate')
    return iter(
        torch.utils.data.DataLoader(
            dataset, cfg.train_dataloader.batch_size, sampler=sampler, collate_fn=collate
        )
    )


def accumulated(cfg, weights, iterations, monkeypatch):
    """One process that runs both ranks' batches with the ranks' seeds, then updates."""
    model = MODELS.build(cfg.model).train()
    model.load_state_dict(weights)
    wrapper = Runner.build_optim_wrapper(
        SimpleNamespace(model=model), {**cfg.optim_wrapper, 'accumulative_counts': 2}
    )
    batches = [rank_batches(cfg, rank, 2, monkeypatch) for rank in range(2)]
    losses = []
    for iteration in range(iterations):
        both = []
        for rank in range(2):
            seed_iteration(SEED, iteration, rank)
            both.append(model.train_step(next(batches[rank]), wrapper)['loss'].item())
        losses.append(sum(both) / 2)
    return losses, model.state_dict()


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates_their_batches(folder, monkeypatch):
    cfg = prepared(folder, 'two', {'train_dataloader.batch_size': 2, 'param_scheduler': None})
    torch.manual_seed(0)
    weights = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=weights), folder / 'start.pth')
    options = [
        f'randomness.seed={SEED}',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=1',
        'param_scheduler=None',
        f'load_from={folder / "start.pth"}',
        'train_cfg.max_iters=10',
    ]
    spread(folder, 'dist_train.sh', '2', '--work-dir', 'two', '--cfg-options', *options)
    losses, final = accumulated(cfg, weights, 10, monkeypatch)
    recorded = [loss for _, loss, _ in read_losses(folder / 'two')]
    assert recorded == pytest.approx(losses, rel=2e-6)
    saved = safe_load(folder / 'two' / 'iter_10.pth')['state_dict']
    moved = {name: relative_error(value, weights[name]) for name, value in saved.items()}
    assert sum(change > 1e-2 for change in moved.values()) > 10
    for name, value in saved.items():
        assert relative_error(value, final[name]) < 2e-5, name


@pytest.mark.slow
def test_evaluation_on_two_processes_counts_each_sample_once(folder):
    cfg = prepared(folder, 'two', {'train_dataloader.batch_size': 2})
    torch.manual_seed(1)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'test.pth')
    count = ('--cfg-options', 'test_evaluator.type=ToyCount', 'test_dataloader.batch_size=2')
    printed = spread(folder, 'dist_test.sh', 'test.pth', '2', '--work-dir', 'test_two', *count)
    options = {'test_evaluator.type': 'ToyCount', 'test_dataloader.batch_size': 2}
    alone = launch.run_test(
        launch.prepare_test_config(
            str(folder / 'toy.py'), str(folder / 'test.pth'), options, str(folder / 'test_one')
        )
    )
    assert alone == {'toy/count': 15, 'toy/light': 7, 'toy/order': 49}
    for name, value in alone.items():
        assert re.search(rf'{name}: {value}\b', printed), printed


def evaluate(metric, samples):
    """What a rank's loop does: every ``world_size``-th sample, padded to equal numbers."""
    from mmengine.dataset import DefaultSampler

    for index in DefaultSampler(samples, shuffle=False):
        truth, prediction = samples[index]
        metric.process({}, [dict(truth, pred_instances=prediction)])
    return metric.evaluate(len(samples))


def evaluate_lvis(rank, world_size, port, folder):
    """Evaluate perturbed truth with the LVIS metric; rank 0 writes the values."""
    import os

    from mmdet.registry import METRICS
    from mmengine.registry import init_default_scope

    from eva_mm.detection.datasets import EVALVISDataset

    if world_size > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank))
        os.chdir(folder)  # where mmengine gathers results
        torch.distributed.init_process_group(
            'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=world_size
        )
        torch.set_num_threads(1)
    init_default_scope('mmdet')
    file = f'{folder}/data/annotations/lvis_v1_val.json'
    dataset = EVALVISDataset(ann_file=file, test_mode=True, pipeline=[])
    samples = [perturbed(dataset.get_data_info(index)) for index in range(len(dataset))]
    metric = METRICS.build(dict(type='EVALVISMetric', ann_file=file))
    metric.dataset_meta = dataset.metainfo
    values = evaluate(metric, samples)
    if rank == 0:
        torch.save(values, f'{folder}/values_{world_size}.pth')
    if world_size > 1:
        torch.distributed.destroy_process_group()


def perturbed(info):
    """Truth of an image, and its boxes moved and scored at random as predictions."""
    generator = torch.Generator().manual_seed(info['img_id'])
    boxes = torch.tensor([instance['bbox'] for instance in info['instances']])
    boxes = boxes + torch.randn(boxes.shape, generator=generator) * 4
    prediction = dict(
        bboxes=boxes,
        scores=torch.rand(len(boxes), generator=generator),
        labels=torch.tensor([instance['bbox_label'] for instance in info['instances']]),
    )
    truth = dict(img_id=info['img_id'], ori_shape=(info['height'], info['width']))
    return truth, prediction


@pytest.mark.slow
def test_lvis_metric_on_two_processes_with_an_odd_number_of_images(tmp_path):
    pytest.importorskip('mmdet')
    from eva_mm.demo.generate import generate_lvis

    generate_lvis(tmp_path / 'data', num_train=30, num_val=7, size=128)
    port = free_port()
    torch.multiprocessing.spawn(evaluate_lvis, (2, port, str(tmp_path)), nprocs=2)
    evaluate_lvis(0, 1, port, str(tmp_path))
    alone, shared = (torch.load(tmp_path / f'values_{size}.pth') for size in (1, 2))
    assert 0.05 < alone['lvis/bbox_AP'] < 0.95
    assert shared == alone


# ------------------------------------------------------------------------------------- accumulation


def test_passes_per_update_change_nothing_but_the_batch(folder):
    """Two passes of 2 equal one of 4; losses and rates are compared update by update."""
    common = {'model.drop': 0.0, 'train_cfg.max_iters': 24}
    launch.build_runner(prepared(folder, 'whole', common)).train()
    halves = {**common, 'train_dataloader.batch_size': 2}
    launch.build_runner(prepared(folder, 'halves', halves, accumulate=2)).train()
    whole, parts = read_losses(folder / 'whole'), read_losses(folder / 'halves')
    assert len(parts) == 2 * len(whole) == 48
    for (_, loss, lr), one, two in zip(whole, parts[::2], parts[1::2]):
        assert (one[1] + two[1]) / 2 == pytest.approx(loss, rel=2e-6)
        assert one[2] == two[2] == lr
    assert len({lr for _, _, lr in whole}) > 10, 'the rate moves'
    names = [{p.name for p in (folder / work).glob('*.pth')} for work in ('whole', 'halves')]
    assert names[0] == {'iter_15.pth', 'iter_20.pth', 'iter_24.pth'}
    assert names[1] == {'iter_30.pth', 'iter_40.pth', 'iter_48.pth'}
    final = [
        safe_load(folder / work / f'iter_{last}.pth')
        for work, last in (('whole', 24), ('halves', 48))
    ]
    for name, value in final[0]['state_dict'].items():
        assert relative_error(final[1]['state_dict'][name], value) < 2e-5, name


def rates(cfg, passes):
    """Rate at each pass of a run, by the hook and schedulers that the config names."""
    from mmengine.registry import HOOKS

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    optimizer.step()
    default = dict(type='ParamSchedulerHook')
    hook = HOOKS.build(cfg.default_hooks.get('param_scheduler', default))
    built = [
        PARAM_SCHEDULERS.build(
            {'end': cfg.train_cfg.max_iters, **s}, default_args=dict(optimizer=optimizer)
        )
        for s in cfg.param_scheduler
    ]
    runner = SimpleNamespace(param_schedulers=built, iter=0)
    seen = []
    for runner.iter in range(passes):
        seen.append(optimizer.param_groups[0]['lr'])
        hook.after_train_iter(runner, runner.iter)
    return seen


@pytest.mark.parametrize('leaf', ['lvis/eva_cascade', 'coco/eva_cascade'])
def test_every_update_of_the_leaf_keeps_its_rate(leaf):
    pytest.importorskip('mmdet')
    plain = launch.prepare_train_config(leaf)
    scaled = launch.prepare_train_config(
        leaf, accumulate=4, auto_scale_lr=True, for_dry_run=True, num_gpus=16
    )
    updates = plain.train_cfg.max_iters
    assert scaled.train_cfg.max_iters == 4 * updates
    assert scaled.train_cfg.val_interval == 20000
    assert scaled.default_hooks.checkpoint.interval == 20000
    assert scaled.optim_wrapper.accumulative_counts == 4
    assert scaled.auto_scale_lr == dict(enable=True, base_batch_size=16)
    expected = rates(plain, updates)
    found = rates(scaled, 4 * updates)
    assert len(set(expected)) > 250
    for first in range(4):
        assert found[first::4] == expected


@pytest.mark.parametrize(
    ('options', 'count', 'message'),
    [
        ({}, 0, '1 or more, not 0'),
        ({'optim_wrapper.accumulative_counts': 2}, 4, 'on top of .*accumulative_counts=2'),
        ({'param_scheduler.0.by_epoch': True}, 2, 'count iterations'),
        ({'default_hooks.param_scheduler': dict(type='Mine')}, 2, 'cannot replace .* Mine'),
        (
            {'train_cfg': dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2)},
            2,
            'needs a loop by iterations',
        ),
    ],
)
def test_what_cannot_be_accumulated(folder, options, count, message):
    with pytest.raises(launch.UsageError, match=message):
        prepared(folder, 'none', options, accumulate=count)


def test_schedules_without_an_end_and_changing_intervals(folder):
    options = {
        'param_scheduler': [dict(type='CosineAnnealingLR', by_epoch=False, eta_min=0.0)],
        'train_cfg.dynamic_intervals': [(21, 2)],
    }
    plain = prepared(folder, 'none', options)
    scaled = prepared(folder, 'none', options, accumulate=3)
    assert rates(scaled, 90)[::3] == rates(plain, 30)
    assert scaled.train_cfg.dynamic_intervals == [(61, 6)]


def test_accumulation_by_hand_is_warned_of(folder, monkeypatch):
    said = []
    monkeypatch.setattr(launch, 'print_log', lambda text, **_: said.append(text))
    prepared(folder, 'none', {'optim_wrapper.accumulative_counts': 2})
    assert '--accumulate 2' in said[0]


def test_dry_run_tells_what_accumulation_makes_of_the_run(folder, capsys):
    options = {'default_hooks.checkpoint.interval': 5, 'train_dataloader.batch_size': 4}
    cfg = prepared(
        folder, 'none', options, accumulate=4, auto_scale_lr=True, for_dry_run=True, num_gpus=2
    )
    assert launch.dry_run(cfg, 2) == 0
    text = capsys.readouterr().out
    assert '4 per GPU x 2 GPUs x 4 accumulated = 32 images per update' in text
    assert 'base batch: 8, 0.25 times as many' in text
    assert '--auto-scale-lr: every rate below is scaled by 4' in text
    assert 'Schedule: 32 iterations' in text  # 30 updates, a quarter of them, 4 passes each
    assert '--accumulate: 8 updates' in text
    assert 'validation every 8, checkpoint every 4 iterations' in text
    assert re.search(r'MultiStepLR milestone +5 ', text)


def _wait_long(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo',
        init_method=f'tcp://127.0.0.1:{port}',
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=2),
    )

    def work():
        time.sleep(4)
        return 'done'

    def fail():
        raise InputError('no such folder')

    told = [on_first_process(work)]
    try:
        on_first_process(fail)
    except InputError as error:
        told.append(str(error))
    told.append(on_first_process(lambda: rank))
    (Path(folder) / f'{rank}.txt').write_text(repr(told))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_the_first_process_may_work_longer_than_the_timeout(tmp_path):
    torch.multiprocessing.spawn(_wait_long, (free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert (tmp_path / f'{rank}.txt').read_text() == "['done', 'no such folder', 0]"
