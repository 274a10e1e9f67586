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


@pytest.fixture(scope='module')
def trained(images, tmp_path_factory):
    """Work dir of a run with drop path, and what its last validation gave."""
    folder = tmp_path_factory.mktemp('trained')
    options = {'custom_hooks': DECAY, 'model.drop_path_rate': 0.9}
    runner, _ = train(small_run('imagenet/eva_g_in1k_336', images, folder, **options))
    scalars = runner.message_hub.log_scalars
    return folder, {
        k: scalars[f'val/{k}'].current() for k in ('accuracy/loss', 'raw/accuracy/loss')
    }


def started(images, work_dir, trained, **changes):
    """A run with the weights of another."""
    cfg = small_run('imagenet/eva_g_in1k_336', images, work_dir, **changes)
    cfg.load_from = str(trained[0] / 'iter_6.pth')
    cfg.model.allowed_missing = []
    return cfg


def test_a_checkpoint_tests_as_its_average_did(images, tmp_path, trained):
    cfg = started(images, tmp_path, trained, custom_hooks=DECAY)
    cfg.model.drop_path_rate = 0.9
    expected = trained[1]['accuracy/loss']
    assert launch.run_test(cfg)['accuracy/loss'] == pytest.approx(expected, rel=1e-6)


def test_both_validations_leave_drop_path_out(images, tmp_path, trained):
    """The weights under training, too, give what a test of them gives."""
    saved = torch.load(trained[0] / 'iter_6.pth', weights_only=False)
    raw = {k.removeprefix('module.'): v for k, v in saved['ema_state_dict'].items()}
    torch.save(dict(state_dict={**saved['state_dict'], **raw}), tmp_path / 'raw.pth')
    cfg = started(images, tmp_path, trained, custom_hooks=[])
    cfg.load_from = str(tmp_path / 'raw.pth')
    found = launch.run_test(cfg)['accuracy/loss']
    assert found == pytest.approx(trained[1]['raw/accuracy/loss'], rel=1e-6)
    assert found != pytest.approx(trained[1]['accuracy/loss'], rel=1e-6)


def test_validation_by_itself(images, tmp_path, trained):
    init_default_scope('mmengine')
    cfg = started(images, tmp_path, trained, custom_hooks=DECAY)
    values = launch.build_runner(cfg).val()
    assert values['accuracy/loss'] == pytest.approx(trained[1]['accuracy/loss'], rel=1e-6)
    assert values['raw/accuracy/loss'] == values['accuracy/loss']


def test_an_average_is_not_resumed_as_weights(images, tmp_path, trained):
    cfg = started(images, tmp_path, trained, custom_hooks=[], resume=True, iterations=8)
    with pytest.raises(InputError, match='holds a moving average .* no EVAEMAHook'):
        train(cfg)


def test_a_resumed_run_without_an_average_is_told(images, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        'eva_mm.classification.ema.print_log', lambda text, *_, **__: told.append(text)
    )
    train(small_run('imagenet/eva_g_in1k_336', images, tmp_path, custom_hooks=[]))
    cfg = small_run('imagenet/eva_g_in1k_336', images, tmp_path / 'b', custom_hooks=DECAY)
    cfg.load_from, cfg.resume = str(tmp_path / 'iter_3.pth'), True
    _, trace = train(cfg)
    assert told == ['the checkpoint holds no moving average: it starts anew from the weights']
    saved = torch.load(tmp_path / 'iter_3.pth', weights_only=False)['state_dict']
    torch.testing.assert_close(trace.averages[0]['head.bias'], saved['head.bias'])


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
    assert averaged(trace) == [False, False, True, False, False, True]


def averaged(trace):
    return [
        not torch.equal(a['head.bias'], b['head.bias'])
        for a, b in zip(trace.averages, trace.averages[1:])
    ]


def test_a_last_incomplete_accumulation_is_averaged_too(images, tmp_path):
    cfg = small_run('imagenet/eva_g_in1k_336', images, tmp_path, 7, custom_hooks=DECAY)
    cfg.optim_wrapper.accumulative_counts = 3
    _, trace = train(cfg)
    assert not torch.equal(*(w['head.bias'] for w in trace.weights[-2:]))  # mmengine updates
    assert averaged(trace) == [False, False, True, False, False, True, True]


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


@pytest.mark.parametrize('part', ['val', 'test'])
def test_other_number_of_classes_to_evaluate(images, tmp_path, trained, part):
    make_folders(tmp_path / 'more' / 'val', {**CLASSES, 'd': 1})
    cfg = started(images, tmp_path, trained)
    cfg[f'{part}_dataloader'].dataset.data_root = str(tmp_path / 'more' / 'val')
    init_default_scope('mmengine')
    runner = launch.build_runner(cfg)
    with pytest.raises(InputError, match=f'model.num_classes is 3, but {part}_data.* 4 classes'):
        getattr(runner, part)()


@pytest.fixture
def others(tmp_path):
    """As many classes as in training, of which one is another."""
    return make_folders(tmp_path / 'others', {'a': 2, 'b': 2, 'd': 2})


def test_validation_classes_are_those_of_training(images, others, tmp_path):
    cfg = small_run('imagenet/eva_g_in1k_336', images, tmp_path)
    cfg.val_dataloader.dataset.data_root = str(others)
    with pytest.raises(InputError, match="val_data.* and train_data.* class 2 is 'd' .* 'c' in"):
        train(cfg)
    cfg.val_dataloader.dataset.data_root = str(images / 'val')
    cfg.val_dataloader.dataset.classes = ['b', 'a', 'c']
    with pytest.raises(InputError, match="another order: class 0 is 'b' in the former, 'a'"):
        train(cfg)


@pytest.mark.parametrize('part', ['val', 'test'])
def test_classes_to_evaluate_are_those_of_the_checkpoint(images, others, tmp_path, trained, part):
    cfg = started(images, tmp_path, trained)
    cfg[f'{part}_dataloader'].dataset.data_root = str(others)
    init_default_scope('mmengine')
    runner = launch.build_runner(cfg)
    with pytest.raises(InputError, match=f"{part}_data.* and the checkpoint .* class 2 is 'd'"):
        getattr(runner, part)()


def test_training_starts_from_other_classes_but_is_not_resumed_with_them(
    images, others, tmp_path, trained
):
    changes = {f'{part}_dataloader.dataset.data_root': str(others) for part in ('train', 'val')}
    cfg = started(images, tmp_path, trained, custom_hooks=DECAY, iterations=8, **changes)
    cfg.default_hooks.checkpoint.interval = 100
    train(copy.deepcopy(cfg))
    cfg.resume = True
    with pytest.raises(InputError, match="train_data.* and the checkpoint .* class 2 is 'd'"):
        train(cfg)


def test_numbers_in_place_of_names_are_not_compared(images, tmp_path, trained):
    make_folders(tmp_path / 'numbered', {'0': 1, '1': 1, '2': 1})
    cfg = started(images, tmp_path, trained)
    cfg.test_dataloader.dataset.data_root = str(tmp_path / 'numbered')
    assert 'accuracy/top1' in launch.run_test(cfg)
