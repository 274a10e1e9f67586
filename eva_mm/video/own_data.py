"""A config that fits itself to video folders of one's own: classes, head, schedule.

``configs/kinetics/eva_g_finetune.py`` names :func:`fit_to_data` under ``fit_config``; the tools
call it when the command line is merged in.
"""

import difflib
import hashlib
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log

from eva_mm.engine.inference import VIDEO_SUFFIXES
from eva_mm.engine.own_data import (
    SPLIT_OPTIONS,
    Option,
    check_fitted,
    check_options,
    check_split,
    read_meta,
)
from eva_mm.engine.processes import on_first_process
from eva_mm.errors import InputError, UsageError

from .classes import read_classes
from .datasets import take_part
from .lists import Video, find_videos

_ORIGIN = 'configs/kinetics/eva_g_finetune.py'
_SHORTEST = 3  # iterations: a warm-up takes two
_NAMES = {'train': ('train', 'training'), 'val': ('val', 'valid', 'validation', 'test')}
_OPTIONS = {
    **SPLIT_OPTIONS,
    'epochs': Option(float, 'above 0', lambda value: value > 0),
    'warm_up_epochs': Option(float, '0 or more', lambda value: value >= 0),
    'min_iterations': Option(int, '1 or more', lambda value: value >= 1),
    'num_validations': Option(int, '1 or more', lambda value: value >= 1),
}
_OTHERS = ('train', 'val', 'fitted_to')


class OwnVideos(NamedTuple):
    """What a config needs to know of video folders.

    Attributes:
        train, val: arguments of the two data sets.
        classes: names in order, those of the training folders.
        num_train, num_val: videos.
        val_digest: of the validation videos' paths.
    """

    train: dict
    val: dict
    classes: list[str]
    num_train: int
    num_val: int
    val_digest: str

    @property
    def is_held_out(self) -> bool:
        """Whether the validation videos are taken from the training folder."""
        return 'holdout' in self.val

    @property
    def split(self) -> str | None:
        """Digest of how the videos are split; None where there are two folders."""
        return self.val_digest if self.is_held_out else None


def fit_to_data(
    cfg: Config, clips_per_update: int, kept: Collection[str] = (), purpose: str = 'train'
) -> None:
    """Fit a config of EVA's video classifier to the folders in ``data_root``, in place.

    Layouts are ``DIR/train/<class>/...`` with ``DIR/val/<class>/...``, and ``DIR/<class>/...``, of
    which ``own_data.val_fraction`` is held out for validation. Classes are those of the training
    folders. The settings under ``own_data`` say the rest; see
    ``configs/kinetics/eva_g_finetune.py``.

    Args:
        cfg: with ``own_data``; its ``data_root`` is set by the user.
        clips_per_update: over all processes and accumulated passes.
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
        told = check_fitted(cfg, root, clips_per_update, kept, purpose, _ORIGIN)
        if told:
            print_log(told, logger='current', level=30)
        return
    data = on_first_process(lambda: _read(*_find_parts(root, options)))
    _set_data(cfg, data)
    text = (
        f'fitted to {root}: {len(data.classes)} classes, {data.num_train:,} training and '
        f'{data.num_val:,} validation videos' + (' (held out)' if data.is_held_out else '')
    )
    if purpose == 'test':
        _check_checkpoint(cfg.get('load_from'), data)
        print_log(text, logger='current')
        return
    _set_schedule(cfg, data.num_train, clips_per_update, kept)
    options.fitted_to = os.path.realpath(root)
    # Noted in checkpoints, so that a run is resumed with the same (engine/resume.py).
    cfg.fitted_length = dict(
        max_iters=cfg.train_cfg.max_iters,
        images_per_update=clips_per_update,
        classes=len(data.classes),
        validation_images=data.val_digest,
        split=data.split,
    )
    print_log(
        f'{text}; {cfg.train_cfg.max_iters:,} iterations of {clips_per_update} clips, learning '
        f'rate {cfg.optim_wrapper.optimizer.lr:.3g}',
        logger='current',
    )


def _data_root(cfg: Config) -> Path:
    if not cfg.get('data_root'):
        raise UsageError(
            f'{cfg.filename} needs video folders: --cfg-options data_root=DIR, with '
            f'DIR/train/CLASS/VIDEO and DIR/val/CLASS/VIDEO, or DIR/CLASS/VIDEO'
        )
    root = Path(str(cfg.data_root)).expanduser()
    if not root.is_dir():
        found = 'it is a file' if root.exists() else 'it does not exist'
        raise InputError(f'data_root={root} should be a folder of videos, but {found}')
    return root


def _find_parts(root: Path, options: dict) -> tuple[dict, dict]:
    """Arguments of the two data sets that depend on the layout."""
    train, val = (_part(root, part, options.get(part)) for part in ('train', 'val'))
    if val is not None and train is None:
        raise InputError(
            f'data_root={root} holds {val.name}, but no {" or ".join(_NAMES["train"])}: name the '
            f'training folder by own_data.train'
        )
    if val is not None:
        first, second = train.resolve(), val.resolve()
        if first.is_relative_to(second) or second.is_relative_to(first):
            raise UsageError(
                f'training folder {train} and validation folder {val} share videos: name others '
                f'by own_data.train and own_data.val, or neither, to hold own_data.val_fraction out'
            )
        return dict(folder=train), dict(folder=val)
    if train is not None and not options.get('train'):
        _refuse_class_called_train(root, train)
    split = dict(fraction=options['val_fraction'], seed=options['split_seed'])
    folder = train or root
    return (
        dict(folder=folder, holdout=dict(part='train', **split)),
        dict(folder=folder, holdout=dict(part='val', **split)),
    )


def _refuse_class_called_train(root: Path, train: Path) -> None:
    """``DIR/{bowing,lifting,training}``: is it the training folder or a class?"""
    parts = {name for names in _NAMES.values() for name in names}
    beside = [name for name in read_classes(root) if name not in parts]
    beside = [name for name in beside if any(map(_is_video, (root / name).iterdir()))]
    if beside:
        raise InputError(
            f'data_root={root} holds {train.name} beside folders of videos, as {beside[0]}: is it '
            f'the training folder (own_data.train={train.name}) or a class (own_data.train=.)?'
        )


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _part(root: Path, part: str, named: str | None) -> Path | None:
    if named:
        folder = root / named
        if not folder.is_dir():
            inside = sorted(f.name for f in root.iterdir() if f.is_dir())
            near = difflib.get_close_matches(named, inside, n=3)
            raise InputError(
                f'own_data.{part}={named}: no such folder in {root}'
                + (f'; near: {", ".join(near)}' if near else '')
            )
        return folder
    return next((root / name for name in _NAMES[part] if (root / name).is_dir()), None)


def _read(train: dict, val: dict) -> OwnVideos:
    """Look for the videos of both parts."""
    classes = read_classes(train['folder'])
    if len(classes) < 2:
        raise InputError(f'{train["folder"]} holds one class, {classes[0]!r}: expected several')
    found = [_videos(**part) for part in (train, val)]
    if empty := sorted(set(classes) - {video.name for video in found[0]}):
        raise InputError(f'{train["folder"]}: no video of {empty[0]!r} ({len(empty)} such classes)')
    for video in found[1]:
        if video.name not in classes:
            raise InputError(
                f'{video.path}: no training folder of the class {video.name!r} in '
                f'{train["folder"]} ({", ".join(classes[:5])} ...)'
            )
    paths = '\n'.join(os.path.relpath(video.path, val['folder']) for video in found[1])
    digest = hashlib.sha256(paths.encode(errors='surrogateescape')).hexdigest()[:12]
    arguments = [
        dict(
            {key: value for key, value in part.items() if key != 'folder'},
            data_prefix=dict(video=str(part['folder'])),
            classes=classes,
        )
        for part in (train, val)
    ]
    return OwnVideos(*arguments, classes, *map(len, found), digest)


def _videos(folder: Path, holdout: dict | None = None) -> list[Video]:
    videos = find_videos(folder)
    return take_part(videos, str(folder), **holdout) if holdout else videos


def _set_data(cfg: Config, data: OwnVideos) -> None:
    for loader, arguments in (('train', data.train), ('val', data.val), ('test', data.val)):
        cfg[f'{loader}_dataloader'].dataset.update(ann_file='', **arguments)
    cfg.model.cls_head.num_classes = len(data.classes)
    blending = cfg.model.data_preprocessor.get('blending')
    if blending is not None:
        blending.num_classes = len(data.classes)


def _set_schedule(cfg: Config, num_videos: int, clips_per_update: int, kept: Collection) -> None:
    """Warm-up and half cosine over ``own_data.epochs``; the rate by the square root of the batch.

    Square root: the rule for Adam (arXiv 2205.10330).
    """
    options = cfg.own_data
    if num_videos < cfg.train_dataloader.batch_size:
        raise InputError(
            f'{num_videos} training videos are fewer than train_dataloader.batch_size='
            f'{cfg.train_dataloader.batch_size}: set a smaller one'
        )
    total = max(math.ceil(options.epochs * num_videos / clips_per_update), options.min_iterations)
    total = cfg.train_cfg.max_iters if 'train_cfg.max_iters' in kept else max(total, _SHORTEST)
    if total < _SHORTEST:
        raise UsageError(
            f'a run of {total} iterations is too short for warm-up and half cosine: expected '
            f'train_cfg.max_iters of {_SHORTEST} or more'
        )
    epoch = max(1, num_videos // clips_per_update)
    warm_up = max(2, min(round(options.warm_up_epochs * epoch), total // 5))
    cfg.train_cfg.max_iters = total
    if 'train_cfg.val_interval' not in kept:
        cfg.train_cfg.val_interval = max(1, math.ceil(total / options.num_validations))
    if 'default_hooks.checkpoint.interval' not in kept:
        cfg.default_hooks.checkpoint.interval = cfg.train_cfg.val_interval
    if not any(key.startswith('param_scheduler') for key in kept):
        rise, fall = cfg.param_scheduler
        rise.end = warm_up
        fall.update(begin=warm_up, end=total, T_max=total - warm_up)
    if 'optim_wrapper.optimizer.lr' not in kept:
        factor = math.sqrt(clips_per_update / cfg.auto_scale_lr.base_batch_size)
        cfg.optim_wrapper.optimizer.lr *= factor
    cfg.auto_scale_lr.base_batch_size = clips_per_update  # the rate is that of this batch


def _check_checkpoint(path: str | None, data: OwnVideos) -> None:
    """Refuse a checkpoint of other classes or another split; tell of other validation videos."""
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
            f'{path} was trained beside other validation videos (digest {before}, here '
            f'{data.val_digest}): some of these may have been trained on',
            'current',
            level=30,
        )
