"""A config that fits itself to image folders of one's own: classes, head, schedule.

``configs/imagenet/eva_g_finetune.py`` names :func:`fit_to_data` under ``fit_config``; the tools
call it when the command line is merged in.
"""

import difflib
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from eva_mm.engine.image_data import IMAGE_SUFFIXES
from eva_mm.engine.own_data import (
    SPLIT_OPTIONS,
    Option,
    check_fitted,
    check_options,
    check_split,
    read_meta,
)
from eva_mm.errors import InputError, UsageError

from .datasets import ClassificationImages

_ORIGIN = 'configs/imagenet/eva_g_finetune.py'
_SHORTEST = 3  # iterations: a warm-up takes two
_NAMES = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation', 'test')}


class OwnFolders(NamedTuple):
    """What a config needs to know of image folders.

    Attributes:
        train, val: arguments of the two data sets.
        classes: names in order, those of the training folders.
        num_train, num_val: images.
        val_digest: of the validation images' paths.
    """

    train: dict
    val: dict
    classes: list[str]
    num_train: int
    num_val: int
    val_digest: str

    @property
    def is_held_out(self) -> bool:
        """Whether the validation images are taken from the training folder."""
        return 'holdout' in self.val

    @property
    def split(self) -> str | None:
        """Digest of how the images are split; None where there are two folders."""
        return self.val_digest if self.is_held_out else None


def fit_to_data(
    cfg: Config, images_per_update: int, kept: Collection[str] = (), purpose: str = 'train'
) -> None:
    """Fit a config of EVA's classifier to the image folders in ``data_root``, in place.

    Layouts are ``DIR/train/<class>/...`` with ``DIR/val/<class>/...``, and ``DIR/<class>/...``,
    of which ``own_data.val_fraction`` is held out for validation. A folder ``test`` counts as
    validation where it has class folders and there is no other. Classes are those of the
    training folders. The settings under ``own_data`` say the rest; see
    ``configs/imagenet/eva_g_finetune.py``.

    Args:
        cfg: with ``own_data``; its ``data_root`` is set by the user.
        images_per_update: over all processes and accumulated passes.
        kept: dotted keys that the command line set, which stay.
        purpose: 'train', 'dry_run', or 'test', which leaves the schedule alone.

    Raises:
        InputError: ``data_root`` is no folder of such a layout, or its classes cannot be used.
        UsageError: an option is unknown or out of range, both parts are one folder, or the
            checkpoint to be tested has other classes or another split.
    """
    root, options = _data_root(cfg), cfg.own_data
    check_options(options, _OPTIONS, _OTHERS)
    if options.get('fitted_to') is not None:
        told = check_fitted(cfg, root, images_per_update, kept, purpose, _ORIGIN)
        if told:
            print_log(told, logger='current', level=30)
        return
    data = _read(*_find_parts(root, options))
    _set_data(cfg, data)
    text = (
        f'fitted to {root}: {len(data.classes)} classes, {data.num_train:,} training and '
        f'{data.num_val:,} validation images' + (' (held out)' if data.is_held_out else '')
    )
    if purpose == 'test':
        _check_checkpoint(cfg.get('load_from'), data)
        print_log(text, logger='current')
        return
    _set_schedule(cfg, data.num_train, images_per_update, kept)
    options.fitted_to = os.path.realpath(root)
    # Noted in checkpoints, so that a run is resumed with the same (engine/resume.py).
    cfg.fitted_length = dict(
        max_iters=cfg.train_cfg.max_iters,
        images_per_update=images_per_update,
        classes=len(data.classes),
        validation_images=data.val_digest,
        split=data.split,
    )
    print_log(
        f'{text}; {cfg.train_cfg.max_iters:,} iterations of {images_per_update} images, learning '
        f'rate {cfg.optim_wrapper.optimizer.lr:.3g}',
        logger='current',
    )


_OPTIONS = {
    **SPLIT_OPTIONS,
    'epochs': Option(float, 'above 0', lambda value: value > 0),
    'warm_up_epochs': Option(float, '0 or more', lambda value: value >= 0),
    'min_iterations': Option(int, '1 or more', lambda value: value >= 1),
    'num_validations': Option(int, '1 or more', lambda value: value >= 1),
    'ema_memory': Option(float, 'above 0', lambda value: value > 0),
}
_OTHERS = ('train', 'val', 'fitted_to')


def _data_root(cfg: Config) -> Path:
    if not cfg.get('data_root'):
        raise UsageError(
            f'{cfg.filename} needs image folders: --cfg-options data_root=DIR, with '
            f'DIR/train/CLASS/IMAGE and DIR/val/CLASS/IMAGE, or DIR/CLASS/IMAGE'
        )
    root = Path(str(cfg.data_root)).expanduser()
    if not root.is_dir():
        found = 'it is a file' if root.exists() else 'it does not exist'
        raise InputError(f'data_root={root} should be a folder of images, but {found}')
    return root


def _find_parts(root: Path, options: ConfigDict) -> tuple[dict, dict]:
    """Arguments of the two data sets that depend on the layout."""
    train, val = (_part(root, part, options.get(part)) for part in ('train', 'val'))
    if val is not None and train is None:
        raise InputError(
            f'data_root={root} holds {val.name}, but no {" or ".join(_NAMES["train"])}: name the '
            f'training folder by own_data.train'
        )
    if val is not None:
        _refuse_shared(train, val)
        return dict(data_root=str(train)), dict(data_root=str(val))
    if train is not None and not options.get('train'):
        _refuse_class_called_train(root, train)
    train = train or root
    split = dict(fraction=options.val_fraction, seed=options.split_seed)
    return (
        dict(data_root=str(train), holdout=dict(part='train', **split)),
        dict(data_root=str(train), holdout=dict(part='val', **split)),
    )


def _refuse_shared(train: Path, val: Path) -> None:
    first, second = train.resolve(), val.resolve()
    if first.is_relative_to(second) or second.is_relative_to(first):
        raise UsageError(
            f'training folder {train} and validation folder {val} share images: name others by '
            f'own_data.train and own_data.val, or neither, to hold own_data.val_fraction out'
        )


def _refuse_class_called_train(root: Path, train: Path) -> None:
    """``DIR/{bus,car,train}``: is it the training folder or a class?"""
    parts = {name for names in _NAMES.values() for name in names}
    beside = [f.name for f in _folders(root) if f.name not in parts and _holds_images(f)]
    if beside:
        raise InputError(
            f'data_root={root} holds {train.name} beside folders of images, as {beside[0]}: is it '
            f'the training folder (own_data.train={train.name}) or a class (own_data.train=.)?'
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith('.'))


def _holds_images(folder: Path) -> bool:
    return any(file.name.lower().endswith(IMAGE_SUFFIXES) for file in folder.iterdir())


def _part(root: Path, part: str, named: str | None) -> Path | None:
    if named:
        folder = root / named
        if not folder.is_dir():
            inside = [path.name for path in _folders(root)]
            near = difflib.get_close_matches(named, inside, n=3)
            raise InputError(
                f'own_data.{part}={named}: no such folder in {root}'
                + (f'; near: {", ".join(near)}' if near else '')
            )
        return folder
    found = next((root / name for name in _NAMES[part] if (root / name).is_dir()), None)
    if found is not None and found.name == 'test' and not _folders(found):
        # As competitions give it: what is to be labelled.
        print_log(f'{found} has no class folders and is left aside', logger='current')
        return None
    return found


def _read(train: dict, val: dict) -> OwnFolders:
    """Look at the images of both parts; the arguments are those of the data sets."""
    dataset = ClassificationImages(**train)
    classes = list(dataset.metainfo['classes'])
    if len(classes) < 2:
        raise InputError(f'{train["data_root"]} holds one class, {classes[0]!r}: expected several')
    train = dict(train, classes=classes)
    val = dict(val, classes=classes, require_all=False)
    held = ClassificationImages(**val)
    return OwnFolders(train, val, classes, len(dataset), len(held), held.digest()[:12])


def _set_data(cfg: Config, data: OwnFolders) -> None:
    for loader, arguments in (('train', data.train), ('val', data.val), ('test', data.val)):
        cfg[f'{loader}_dataloader'].dataset.update(arguments)
    cfg.model.num_classes = len(data.classes)
    mixup = cfg.model.data_preprocessor.get('mixup')
    if mixup is not None:
        mixup.num_classes = len(data.classes)


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
    total = max(total, _SHORTEST)
    total = cfg.train_cfg.max_iters if 'train_cfg.max_iters' in kept else total
    if total < _SHORTEST:
        raise UsageError(
            f'a run of {total} iterations is too short for warm-up and half cosine: expected '
            f'train_cfg.max_iters of {_SHORTEST} or more'
        )
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


def _check_checkpoint(path: str | None, data: OwnFolders) -> None:
    """Refuse a checkpoint of other classes or another split; tell of other validation images."""
    meta, classes = read_meta(path), data.classes
    trained = list((meta.get('dataset_meta') or {}).get('classes') or classes)
    if trained != classes:
        raise UsageError(
            f'{path} was trained on {len(trained)} classes ({", ".join(trained[:5])} ...), but the '
            f'training folders hold {len(classes)} ({", ".join(classes[:5])} ...)'
        )
    check_split(path, data.split)
    before = (meta.get('fitted_length') or {}).get('validation_images')
    if before is not None and before != data.val_digest:
        print_log(
            f'{path} was trained beside other validation images (digest {before}, here '
            f'{data.val_digest}): some of these may have been trained on',
            'current',
            level=30,
        )
