"""Counts, groups, rates and lengths of the twelve leaves against the logs' closed forms."""

import itertools
import math
import re
from typing import NamedTuple

import numpy as np
import pytest
from mmengine.registry import MODELS

from eva_mm.classification.datasets import read_classes
from eva_mm.engine.layer_decay import param_group_table
from eva_mm.zoo.table import published_models

from ..helpers import ROOT, build_leaf, rates_of_schedule


class Run(NamedTuple):
    """A published run, written down by hand from its log."""

    epochs: int
    warm_up: int  # epochs
    steps: int  # per epoch
    batch: int
    lr: float
    min_lr: float
    layer_decay: float
    parameters: int
    weights: str
    start: str
    depth: int = 40
    betas: tuple = (0.9, 0.999)
    eps: float = 1e-8
    smoothing: float = 0.3
    drop_path: float = 0.4
    ema: bool = True
    probe: bool = False
    mixing: tuple | None = None  # mixup, CutMix, smoothing of the targets
    root: str = 'data/imagenet/train'
    classes: str = 'imagenet-1k'


IN21K = dict(
    betas=(0.9, 0.98),
    eps=1e-6,
    smoothing=0.1,
    ema=False,
    mixing=(0.0, 1.0, 0.1),
    root='data/imagenet21k/',
    classes='imagenet-22k',
)
MIXED = dict(smoothing=0.1, mixing=(0.8, 1.0, 0.1))
# Of CLIP, by hand from its repository.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
LARGE = dict(depth=24, drop_path=0.2)
PROBE = dict(smoothing=0.0, drop_path=0.0, ema=False, probe=True)
G21K, L21K = 'eva_21k_224px', 'eva_l_psz14_21k_ft'
FT224, FT336 = 'eva_clip_ft_224px', 'eva_clip_ft_336px'
CLIP, L = 'eva_clip_vision_enc', 'eva_l_psz14'
RUNS = {
    'eva_g_in21k_224': Run(
        60, 15, 3466, 4096, 1e-4, 1e-6, 0.85, 1_041_920_081, G21K, 'eva_psz14', **IN21K
    ),
    'eva_g_in1k_336': Run(
        10, 2, 2502, 512, 3e-5, 0, 0.95, 1_013_005_672, 'eva_21k_1k_336px', G21K
    ),
    'eva_g_in1k_560': Run(
        15, 2, 2502, 512, 3e-5, 0, 0.95, 1_014_447_464, 'eva_21k_1k_560px', G21K
    ),
    'eva_clip_ft_224': Run(20, 2, 2502, 512, 3e-5, 0, 0.9, 1_012_555_112, FT224, CLIP),
    'eva_clip_ft_336': Run(20, 2, 2502, 512, 3e-5, 0, 0.9, 1_013_005_672, FT336, CLIP),
    'eva_clip_linear_224': Run(
        90, 10, 80, 16000, 1.0, 0, 1.0, 1_409_000, 'eva_clip_lincls_224px', CLIP, **PROBE
    ),
    'eva_clip_linear_336': Run(
        90, 10, 80, 16000, 0.6, 0, 1.0, 1_409_000, 'eva_clip_lincls_336px', CLIP, **PROBE
    ),
    'eva_l_in21k_224': Run(
        90, 15, 3439, 4096, 6e-4, 1e-6, 0.75, 325_565_777, L21K, L, **{**LARGE, **IN21K}
    ),
    'eva_l_in1k_196': Run(
        50, 5, 1251, 1024, 2e-4, 0, 0.8, 304_142_312, 'eva_l_psz14_196px_1k_ft', L,
        **MIXED, **LARGE,
    ),
    'eva_l_in1k_336': Run(
        50, 5, 1251, 1024, 2e-4, 0, 0.8, 304_531_432, 'eva_l_psz14_336px_1k_ft', L,
        **MIXED, **LARGE,
    ),
    'eva_l_in21k_in1k_196': Run(
        20, 5, 2502, 512, 6e-5, 0, 0.8, 304_142_312, 'eva_l_psz14_196px_21k_to_1k_ft', L21K,
        smoothing=0.2, **LARGE,
    ),
    'eva_l_in21k_in1k_336': Run(
        20, 5, 2502, 512, 6e-5, 0, 0.8, 304_531_432, 'eva_l_psz14_336px_21k_to_1k_ft', L21K,
        smoothing=0.2, **LARGE,
    ),
}  # fmt: skip

pytestmark = pytest.mark.parametrize('name', RUNS)


@pytest.fixture
def built():
    """Config, model on the meta device and optimizer wrapper of a leaf."""
    return lambda name: build_leaf(f'imagenet/{name}', 'mmengine')


def test_number_of_parameters(built, name):
    run, (_, model, _) = RUNS[name], built(name)
    counted = [p for p in model.parameters() if p.requires_grad or not run.probe]
    assert sum(p.numel() for p in counted) == run.parameters
    # What the zoo tells of the weights that the run made.
    assert published_models()[run.weights].params == run.parameters
    assert published_models()[run.weights].config == f'configs/imagenet/{name}.py'


def expected_depth(name: str, depth: int) -> int:
    """Rule of the published code, by names alone."""
    if name in ('cls_token', 'pos_embed') or name.startswith('patch_embed'):
        return 0
    return int(name.split('.')[1]) + 1 if name.startswith('blocks.') else depth + 1


def test_every_parameter_has_its_rate_and_decay(built, name):
    run, (_, model, wrapper) = RUNS[name], built(name)
    table = {}
    for parameter, value in model.named_parameters():
        if run.probe and not parameter.startswith('head.1.'):
            continue
        # Behind the published stop of the gradient nothing learns.
        if run.depth == 40 and parameter.startswith('patch_embed'):
            continue
        scale = run.layer_decay ** (run.depth + 1 - expected_depth(parameter, run.depth))
        spared = value.ndim == 1 or parameter in ('pos_embed', 'cls_token')
        decay = 0.0 if spared or run.probe else 0.05
        table[parameter] = (pytest.approx(run.lr * scale, rel=1e-12), decay)
    rows = param_group_table(wrapper)
    assert {row.name: (row.lr, row.weight_decay) for row in rows} == table
    if not run.probe:
        ratio = min(row.lr for row in rows) / max(row.lr for row in rows)
        logged = {
            0.95: 0.122087, 0.9: 0.0133028, 0.85: 0.00127696, 0.75: 0.000752543, 0.8: 0.00377789,
        }  # fmt: skip
        assert ratio == pytest.approx(logged[run.layer_decay], rel=1e-5)


def closed_form(run: Run) -> np.ndarray:
    """Rate of the highest group in each step."""
    rise, total = run.warm_up * run.steps, run.epochs * run.steps
    steps = np.arange(total - rise)
    falling = run.min_lr + 0.5 * (run.lr - run.min_lr) * (
        1 + np.cos(math.pi * steps / (total - rise))
    )
    return np.concatenate([run.lr * np.arange(rise) / (rise - 1), falling])


def test_rates_of_every_epoch(built, name):
    run, (cfg, _, wrapper) = RUNS[name], built(name)
    total = run.epochs * run.steps
    assert cfg.train_cfg.max_iters == total
    rates = [group['lr'] for group in wrapper.optimizer.param_groups]
    ends = (max(rates), min(rates))
    found = np.array(list(itertools.islice(rates_of_schedule(cfg, ends), total)))
    expected = closed_form(run)
    smallest = expected * run.layer_decay ** (run.depth + 1 if not run.probe else 0)
    if run.depth == 40 and not run.probe:
        # The lowest group keeps the position embedding, although the patch embedding is frozen.
        assert min(rates) == pytest.approx(run.lr * run.layer_decay**41)
    for column, curve in ((0, expected), (1, smallest)):
        by_epoch = found[:, column].reshape(run.epochs, run.steps).mean(axis=1)
        wanted = curve.reshape(run.epochs, run.steps).mean(axis=1)
        np.testing.assert_allclose(by_epoch, wanted, rtol=1e-9)
        np.testing.assert_allclose(found[:, column], curve, rtol=1e-7, atol=1e-12)
    rise = run.warm_up * run.steps
    assert found[0, 0] < 1e-19
    assert found[rise - 1, 0] == pytest.approx(run.lr)
    assert found[rise, 0] == pytest.approx(run.lr)


def test_the_rest_of_the_recipe(built, name):
    run, (cfg, model, wrapper) = RUNS[name], built(name)
    group = wrapper.optimizer.param_groups[0]
    if run.probe:
        assert cfg.optim_wrapper.optimizer.type == 'EVALARS'
        assert (group['momentum'], group['trust_coefficient']) == (0.9, 0.001)
    else:
        assert cfg.optim_wrapper.optimizer.type == 'AdamW'
        assert (tuple(group['betas']), group['eps']) == (run.betas, run.eps)
    assert not wrapper.clip_grad_kwargs
    assert cfg.auto_scale_lr.base_batch_size == run.batch
    assert model.label_smoothing == run.smoothing
    assert model.blocks[-1].drop_path.rate == pytest.approx(run.drop_path)
    assert model.pooling == ('cls' if run.probe else 'mean')
    assert model.stop_grad_patch_embed is (run.depth == 40)
    hooks = {hook.type: hook for hook in cfg.get('custom_hooks', ())}
    assert ('EVAEMAHook' in hooks) is run.ema
    if run.ema:
        assert hooks['EVAEMAHook'].decay == 0.9999
        assert cfg.val_cfg.type == 'RawAndAveragedValLoop'
    assert cfg.load_from == f'eva://{run.start}'
    if 'in21k_224' in name:
        assert cfg.get('val_dataloader') is None
    else:
        assert cfg.train_cfg.val_interval == run.steps
        assert cfg.default_hooks.checkpoint.save_best == 'accuracy/top1'
    assert cfg.randomness.seed == 0


def test_mixing_head_and_normalisation(built, name):
    run, (cfg, model, _) = RUNS[name], built(name)
    preprocessor = MODELS.build(cfg.model.data_preprocessor)
    assert preprocessor.mean.flatten().tolist() == pytest.approx(MEAN)
    assert preprocessor.std.flatten().tolist() == pytest.approx(STD)
    mixup = preprocessor.mixup
    if run.mixing is None:
        assert mixup is None
    else:
        assert (mixup.mixup_alpha, mixup.cutmix_alpha, mixup.label_smoothing) == run.mixing
        assert mixup.num_classes == model.num_classes
    assert cfg.model.head_init_scale == 0.001
    assert cfg.model.activation_checkpointing is (run.depth == 40 and not run.probe)


def test_data_and_hooks(built, name):
    run, (cfg, model, _) = RUNS[name], built(name)
    train = cfg.train_dataloader.dataset
    assert (train.data_root, train.classes) == (run.root, run.classes)
    assert len(read_classes(train.classes)) == model.num_classes
    assert cfg.train_dataloader.drop_last is True
    assert train.get('skip_unreadable', False) is (run.classes == 'imagenet-22k')
    if run.classes == 'imagenet-1k':
        for loader in (cfg.val_dataloader, cfg.test_dataloader):
            dataset = loader.dataset
            assert (dataset.data_root, dataset.classes) == ('data/imagenet/val', 'imagenet-1k')
            assert dataset.test_mode is True
    hooks = [hook.type for hook in cfg.get('custom_hooks', ())]
    assert hooks == ['EVAEMAHook'] * run.ema + ['BroadcastBuffersHook'] * run.probe
    assert cfg.default_hooks.class_count.type == 'ClassCountHook'
    assert cfg.default_hooks.checkpoint.interval == run.steps


def test_command_and_hardware_make_the_batch(built, name):
    """What the header tells to run is the batch that the rate is for."""
    run, (cfg, _, _) = RUNS[name], built(name)
    header = (ROOT / 'configs' / 'imagenet' / f'{name}.py').read_text().split('"""')[1]
    command = re.search(
        r'Command: .*configs/imagenet/(\w+)\.py (\d+) .*each of (\d+) nodes', header
    )
    gpus, images = map(int, re.search(r'Hardware:.* (\d+) GPUs with (\d+) images', header).groups())
    assert command[1] == name
    assert int(command[2]) * int(command[3]) == gpus
    assert cfg.train_dataloader.batch_size == images
    assert gpus * images == run.batch == cfg.auto_scale_lr.base_batch_size
