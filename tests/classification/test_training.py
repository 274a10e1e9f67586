"""Whole small runs: moving average, resuming, linear probe, and errors before they start."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from eva_mm.engine import launch
from eva_mm.errors import InputError

from ..helpers import load_config
from .small import make_folders, shrink_classifier

CLASSES = {'a': 6, 'b': 6, 'c': 6}


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    for part in ('train', 'val'):
        make_folders(root / part, CLASSES)
    return root


def small_run(leaf, images, work_dir, iterations=6, **changes) -> Config:
    """A leaf made small, with its own components, on tiny folders."""
    cfg = shrink_classifier(load_config(leaf, 'mmengine'), num_classes=3)
    for part, loader in (('train', 'train'), ('val', 'val'), ('val', 'test')):
        loader = cfg[f'{loader}_dataloader']
        loader.update(batch_size=4, num_workers=0, persistent_workers=False, pin_memory=False)
        loader.dataset.update(data_root=str(images / part), classes=None)
        # Lists of the leaf are copies, not the ones that shrink_classifier changed.
        for transform in loader.dataset.pipeline:
            if 'size' in transform:
                transform.size = 32
    cfg.train_cfg.update(max_iters=iterations, val_interval=iterations)
    for scheduler in cfg.param_scheduler:
        scheduler.update(begin=0, end=iterations)
        scheduler.pop('T_max', None)
    cfg.param_scheduler = cfg.param_scheduler[1:]
    cfg.optim_wrapper.optimizer.lr = 0.01
    cfg.default_hooks.checkpoint.update(interval=iterations // 2, max_keep_ckpts=-1)
    cfg.default_hooks.checkpoint.pop('save_best')
    cfg.visualizer = None
    cfg.load_from, cfg.work_dir = None, str(work_dir)
    cfg.merge_from_dict(changes)
    return cfg


class Trace:
    """Weights and averages after each update, as values."""

    def __init__(self, runner):
        self.weights, self.averages = [], []
        hook = next(h for h in runner.hooks if type(h).__name__ == 'EVAEMAHook')
        update = hook.after_train_iter

        def after_train_iter(*args, **kwargs):
            if not self.weights:
                self.averages.append(copy.deepcopy(hook.average))
            update(*args, **kwargs)
            self.weights.append({k: v.clone() for k, v in hook._weights.items()})
            self.averages.append(copy.deepcopy(hook.average))

        hook.after_train_iter = after_train_iter


def train(cfg):
    init_default_scope('mmengine')
    runner = launch.build_runner(cfg)
    trace = Trace(runner) if any(h.type == 'EVAEMAHook' for h in cfg.custom_hooks) else None
    runner.train()
    return runner, trace


DECAY = [dict(type='EVAEMAHook', decay=0.8)]


def test_average_starts_from_the_initial_weights(images, tmp_path):
    cfg = small_run('imagenet/eva_g_in1k_336', images, tmp_path, custom_hooks=DECAY)
    runner, trace = train(cfg)
    initial, name = trace.averages[0], 'blocks.0.mlp.fc1.weight'
    assert 'patch_embed.proj.weight' not in initial  # frozen
    expected = initial[name]
    for weights, average in zip(trace.weights, trace.averages[1:]):
        expected = 0.8 * expected + 0.2 * weights[name]
        torch.testing.assert_close(average[name], expected)
    assert not torch.equal(expected, trace.weights[-1][name])
    # The file holds the average where it is loaded from, and the model has the weights again.
    saved = torch.load(tmp_path / 'iter_6.pth', weights_only=False)
    torch.testing.assert_close(saved['state_dict'][name], expected)
    torch.testing.assert_close(saved['ema_state_dict'][f'module.{name}'], trace.weights[-1][name])
    torch.testing.assert_close(runner.model.state_dict()[name], trace.weights[-1][name])
    scalars = runner.message_hub.log_scalars
    assert {'val/accuracy/top1', 'val/raw/accuracy/top1', 'val/accuracy/loss'} <= set(scalars)
    assert scalars['val/accuracy/loss'].current() != scalars['val/raw/accuracy/loss'].current()


def test_a_checkpoint_tests_as_its_average_did(images, tmp_path):
    cfg = small_run('imagenet/eva_g_in1k_336', images, tmp_path, custom_hooks=DECAY)
    runner, _ = train(cfg)
    validated = runner.message_hub.get_scalar('val/accuracy/loss').current()
    cfg = small_run('imagenet/eva_g_in1k_336', images, tmp_path / 'test', custom_hooks=DECAY)
    cfg.load_from = str(tmp_path / 'iter_6.pth')
    cfg.model.allowed_missing = []
    assert launch.run_test(cfg)['accuracy/loss'] == pytest.approx(validated, rel=1e-6)


def test_resumed_average_goes_on_exactly(images, tmp_path):
    runs = []
    for resume in (None, str(tmp_path / 'first' / 'iter_3.pth')):
        folder = tmp_path / ('resumed' if resume else 'first')
        cfg = small_run('imagenet/eva_l_in1k_196', images, folder, custom_hooks=DECAY)
        cfg.load_from, cfg.resume = resume, resume is not None
        runs.append(train(cfg))
    (_, first), (_, second) = runs
    assert len(first.weights) == 6
    assert len(second.weights) == 3
    for name, value in first.averages[-1].items():
        assert torch.equal(value, second.averages[-1][name]), name
        assert torch.equal(first.weights[-1][name], second.weights[-1][name]), name


def test_accumulated_passes_average_once(images, tmp_path):
    cfg = small_run('imagenet/eva_g_in1k_336', images, tmp_path, custom_hooks=DECAY)
    cfg.optim_wrapper.accumulative_counts = 3
    _, trace = train(cfg)
    steps = [
        not torch.equal(a['head.bias'], b['head.bias'])
        for a, b in zip(trace.averages, trace.averages[1:])
    ]
    assert steps == [False, False, True, False, False, True]


def test_decay_out_of_range():
    from eva_mm.classification import EVAEMAHook

    with pytest.raises(InputError, match='decay.*got 1.0'):
        EVAEMAHook(decay=1.0)


def test_mixed_batches_train(images, tmp_path):
    """The IN-21K leaf trains with CutMix and validates nothing."""
    cfg = small_run_without_val('imagenet/eva_g_in21k_224', images, tmp_path)
    runner, _ = train(cfg)
    assert runner.iter == 6
    assert runner.val_loop is None


def small_run_without_val(leaf, images, work_dir):
    full = small_run('imagenet/eva_g_in1k_336', images, work_dir, custom_hooks=[])
    cfg = shrink_classifier(load_config(leaf, 'mmengine'), num_classes=3)
    cfg.train_dataloader = full.train_dataloader
    cfg.train_cfg.update(max_iters=6)
    cfg.default_hooks.checkpoint.interval = 6
    cfg.visualizer = cfg.load_from = None
    cfg.custom_hooks, cfg.work_dir = [], str(work_dir)
    for scheduler in cfg.param_scheduler:
        scheduler.update(begin=0, end=6)
        scheduler.pop('T_max', None)
    cfg.param_scheduler = cfg.param_scheduler[1:]
    return cfg


def test_linear_probe_trains_its_head_alone(images, tmp_path):
    cfg = small_run('imagenet/eva_clip_linear_224', images, tmp_path)
    init_default_scope('mmengine')
    runner = launch.build_runner(cfg)
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    runner.train()
    moved = {k for k, v in runner.model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {
        'head.0.running_mean', 'head.0.running_var', 'head.0.num_batches_tracked',
        'head.1.weight', 'head.1.bias',
    }  # fmt: skip


def test_other_number_of_outputs_stops_the_run(images, tmp_path):
    cfg = small_run('imagenet/eva_g_in1k_336', images, tmp_path, **{'model.num_classes': 4})
    with pytest.raises(InputError, match='model.num_classes is 4, but train.* 3 classes'):
        train(cfg)
