"""A config that fits itself to image folders of one's own: classes, head, schedule.

``configs/imagenet/eva_g_finetune.py`` names :func:`fit_to_data` under ``fit_config``; the tools
call it when the command line is merged in.
"""

import difflib
import math
import os
from collections.abc import Collection
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from eva_mm.engine.checkpoint import safe_load
from eva_mm.errors import InputError, UsageError

from .datasets import ClassificationImages

_NAMES = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation', 'test')}


def fit_to_data(
    cfg: Config, images_per_update: int, kept: Collection[str] = (), purpose: str = 'train'
) -> None:
    """Fit a config of EVA's classifier to the image folders in ``data_root``, in place.

    Layouts are ``DIR/train/<class>/...`` with ``DIR/val/<class>/...``, and ``DIR/<class>/...``,
    of which ``own_data.val_fraction`` is held out for validation. Classes are those of the
    training folders. The settings under ``own_data`` say the rest; see
    ``configs/imagenet/eva_g_finetune.py``.

    Args:
        cfg: with ``own_data``; its ``data_root`` is set by the user.
        images_per_update: over all processes and accumulated passes.
        kept: dotted keys that the command line set, which stay.
        purpose: 'train', 'dry_run', or 'test', which leaves the schedule alone.

    Raises:
        InputError: ``data_root`` is no folder of such a layout, or its classes cannot be used.
        UsageError: the checkpoint to be tested has other classes or another split.
    """
    if cfg.own_data.get('fitted_to') is not None:
        _check_fitted(cfg, kept)
        return
    train, val = _find_parts(cfg)
    dataset = ClassificationImages(**_reading(train))
    classes = list(dataset.metainfo['classes'])
    if len(classes) < 2:
        raise InputError(f'{train["data_root"]} holds one class, {classes[0]!r}: expected several')
    val.update(classes=classes, require_all=False)
    held = ClassificationImages(**_reading(val))
    _set_data(cfg, classes, train, val)
    text = (
        f'fitted to {cfg.data_root}: {len(classes)} classes, {len(dataset):,} training and '
        f'{len(held):,} validation images' + (' (held out)' if 'holdout' in val else '')
    )
    if purpose == 'test':
        _check_checkpoint(cfg.get('load_from'), classes, held.digest())
    else:
        _set_schedule(cfg, len(dataset), images_per_update, kept)
        cfg.own_data.fitted_to = os.path.realpath(cfg.data_root)
        cfg.fitted_length = dict(
            max_iters=cfg.train_cfg.max_iters,
            images_per_update=images_per_update,
            classes=len(classes),
            validation_images=held.digest()[:12],
        )
        text += (
            f'; {cfg.train_cfg.max_iters:,} iterations of {images_per_update} images, learning '
            f'rate {cfg.optim_wrapper.optimizer.lr:.3g}'
        )
    print_log(text, logger='current')


def _check_fitted(cfg: Config, kept: Collection[str]) -> None:
    """Refuse what would fit a fitted config, as a training saves it, to something else."""
    now, before = os.path.realpath(str(cfg.data_root)), cfg.own_data.fitted_to
    late = sorted(key for key in kept if key.split('.')[0] == 'own_data')
    if now != before or late:
        what = f'data_root={now}' if now != before else f'{", ".join(late)} would do nothing'
        raise UsageError(
            f'{what}: {cfg.filename} is fitted to {before} already; start from the config that it '
            f'was made from, as configs/imagenet/eva_g_finetune.py'
        )


def _find_parts(cfg: Config) -> tuple[dict, dict]:
    """Arguments of the two data sets that depend on the layout."""
    if not cfg.get('data_root'):
        raise UsageError(
            f'{cfg.filename} needs image folders: --cfg-options data_root=DIR, with '
            f'DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, or DIR/CLASS/IMAGE'
        )
    root, options = Path(str(cfg.data_root)).expanduser(), cfg.own_data
    if not root.is_dir():
        found = 'it is a file' if root.exists() else 'it does not exist'
        raise InputError(f'data_root={root} should be a folder of images, but {found}')
    train, val = (_part(root, part, options.get(part)) for part in ('train', 'val'))
    if val is not None and train is None:
        raise InputError(
            f'data_root={root} holds {val.name}, but no {" or ".join(_NAMES["train"])}: name the '
            f'training folder by own_data.train'
        )
    train = train or root
    if val is not None:
        return dict(data_root=str(train)), dict(data_root=str(val))
    split = dict(fraction=options.val_fraction, seed=options.split_seed)
    return (
        dict(data_root=str(train), holdout=dict(part='train', **split)),
        dict(data_root=str(train), holdout=dict(part='val', **split)),
    )


def _part(root: Path, part: str, named: str | None) -> Path | None:
    if named:
        folder = root / named
        if not folder.is_dir():
            inside = sorted(path.name for path in root.iterdir() if path.is_dir())
            near = difflib.get_close_matches(named, inside, n=3)
            raise InputError(
                f'own_data.{part}={named}: no such folder in {root}'
                + (f'; near: {", ".join(near)}' if near else '')
            )
        return folder
    return next((root / name for name in _NAMES[part] if (root / name).is_dir()), None)


def _reading(arguments: dict) -> dict:
    return {k: v for k, v in arguments.items() if k != 'pipeline'}


def _set_data(cfg: Config, classes: list[str], train: dict, val: dict) -> None:
    train = dict(train, classes=classes)
    for loader, arguments in (('train', train), ('val', val), ('test', val)):
        dataset = cfg[f'{loader}_dataloader'].dataset
        dataset.update(arguments)
    cfg.model.num_classes = len(classes)
    mixup = cfg.model.data_preprocessor.get('mixup')
    if mixup is not None:
        mixup.num_classes = len(classes)


def _set_schedule(cfg: Config, num_images: int, images_per_update: int, kept: Collection) -> None:
    """Warm-up and half cosine over ``own_data.epochs``; the rate by the square root of the batch.

    Square root: the rule for Adam (arXiv 2205.10330).
    """
    options = cfg.own_data
    epoch = max(1, num_images // images_per_update)
    if num_images < cfg.train_dataloader.batch_size:
        raise InputError(
            f'{num_images} training images are fewer than train_dataloader.batch_size='
            f'{cfg.train_dataloader.batch_size}: set a smaller one'
        )
    total = max(math.ceil(options.epochs * num_images / images_per_update), options.min_iterations)
    total = cfg.train_cfg.max_iters if 'train_cfg.max_iters' in kept else total
    warm_up = min(round(options.warm_up_epochs * epoch), total // 5)
    interval = max(1, math.ceil(total / options.num_validations))
    cfg.train_cfg.max_iters = total
    if 'train_cfg.val_interval' not in kept:
        cfg.train_cfg.val_interval = interval
    if 'default_hooks.checkpoint.interval' not in kept:
        cfg.default_hooks.checkpoint.interval = cfg.train_cfg.val_interval
    if not any(key.startswith('param_scheduler') for key in kept):
        rise, fall = cfg.param_scheduler
        rise.end = warm_up = max(warm_up, 2)
        fall.update(begin=warm_up, end=total, T_max=total - warm_up)
    if 'optim_wrapper.optimizer.lr' not in kept:
        factor = math.sqrt(images_per_update / cfg.auto_scale_lr.base_batch_size)
        cfg.optim_wrapper.optimizer.lr *= factor
    cfg.auto_scale_lr.base_batch_size = images_per_update  # the rate is that of this batch
    for hook in cfg.get('custom_hooks') or ():
        if hook.type == 'EVAEMAHook' and not any(key.startswith('custom_hooks') for key in kept):
            hook.decay = 1 - 1 / max(2.0, options.ema_memory * total)


def _check_checkpoint(path: str | None, classes: list[str], digest: str) -> None:
    if not path or not os.path.isfile(path):
        return
    meta = safe_load(path, map_location='cpu', mmap=True).get('meta') or {}
    trained = list((meta.get('dataset_meta') or {}).get('classes') or classes)
    if trained != classes:
        raise UsageError(
            f'{path} was trained on {len(trained)} classes ({", ".join(trained[:5])} ...), but the '
            f'training folders hold {len(classes)} ({", ".join(classes[:5])} ...)'
        )
    before = (meta.get('fitted_length') or {}).get('validation_images')
    if before is not None and before != digest[:12]:
        print_log(
            f'{path} was trained beside other validation images (digest {before}, here '
            f'{digest[:12]}): some of these may have been trained on',
            'current',
            level=30,
        )
