"""A config that fits itself to pictures and label maps of one's own: classes, head, schedule.

``configs/ade20k/eva_mask2former_finetune.py`` names :func:`fit_to_data` under ``fit_config``; the
tools call it when the command line is merged in.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmseg.registry import DATASETS

from eva_mm.engine.image_data import IMAGE_SUFFIXES
from eva_mm.engine.own_data import (
    SPLIT_OPTIONS,
    Option,
    check_fitted,
    check_options,
    check_split,
    read_meta,
)
from eva_mm.engine.processes import on_first_process
from eva_mm.errors import InputError, MissingFileError, UsageError

from .datasets import read_class_names
from .transforms import IGNORED, label_table, look_up, read_label

_ORIGIN = 'configs/ade20k/eva_mask2former_finetune.py'
_IMAGES = ('images', 'img_dir', 'image', 'imgs')
_LABELS = ('annotations', 'ann_dir', 'labels', 'masks', 'label', 'mask', 'annotation')
_PARTS = {'train': ('training', 'train'), 'val': ('validation', 'val', 'valid', 'test')}
_CLASS_FILES = ('classes.txt', 'labels.txt', 'class_names.txt')
_SHORTEST = 3  # iterations: a warm-up takes two
_READERS = 4
_TELL_EVERY = 10.0  # seconds, while label maps are read
_SAMPLED = 100  # images whose label maps are looked for by name


class Part(NamedTuple):
    """Folders of the training or the validation images, and their label maps."""

    images: Path
    labels: Path


class OwnMaps(NamedTuple):
    """What a config needs to know of pictures and label maps.

    Attributes:
        train, val: arguments of the two data sets.
        classes: names in the order of the numbers.
        num_train, num_val: images.
        pixels: of each class in the training part; empty where maps were not read.
        split: digest of the validation images where they are held out; None where there are two
            folders.
    """

    train: dict
    val: dict
    classes: list[str]
    num_train: int
    num_val: int
    pixels: list[int]
    split: str | None


_OPTIONS = {
    **SPLIT_OPTIONS,
    'epochs': Option(float, 'above 0', lambda value: value > 0),
    'min_iterations': Option(int, '1 or more', lambda value: value >= 1),
    'warm_up': Option(int, '0 or more', lambda value: value >= 0),
    'num_validations': Option(int, '1 or more', lambda value: value >= 1),
}
_OTHERS = (
    'train_images',
    'train_labels',
    'val_images',
    'val_labels',
    'label_suffix',
    'classes',
    'reduce_zero_label',
    'fitted_to',
)


def fit_to_data(
    cfg: Config, images_per_update: int, kept: Collection[str] = (), purpose: str = 'train'
) -> None:
    """Fit a config of EVA's segmentor to the folder in ``data_root``, in place.

    Layouts are ``DIR/images/{train,val}/...`` with ``DIR/annotations/{train,val}/...`` (also
    ADE20K's ``training`` and ``validation``, mmseg's ``img_dir`` and ``ann_dir``, and ``labels`` or
    ``masks``), and the same without parts, of which ``own_data.val_fraction`` is held out. Class
    names are those of ``own_data.classes`` (names, or a file), else of ``DIR/classes.txt``; without
    either, every number up to the largest in the maps is a class. All maps are read once; where the
    classes are given, a test reads none beforehand.

    Args:
        cfg: with ``own_data``; its ``data_root`` is set by the user.
        images_per_update: over all processes and accumulated passes.
        kept: dotted keys that the command line set, which stay.
        purpose: 'train', 'dry_run', or 'test', which leaves the schedule alone.

    Raises:
        InputError: ``data_root`` has no such layout, or its maps cannot be used.
        UsageError: an option is unknown or out of range, or the checkpoint to be tested has other
            classes or another split.
    """
    root, options = _data_root(cfg), cfg.own_data
    check_options(options, _OPTIONS, _OTHERS)
    _check_others(options)
    if options.get('fitted_to') is not None:
        told = check_fitted(cfg, root, images_per_update, kept, purpose, _ORIGIN)
        if told:
            print_log(told, logger='current', level=30)
        return
    data = on_first_process(lambda: _read(root, options, purpose))
    _set_data(cfg, data)
    text = (
        f'fitted to {root}: {len(data.classes)} classes, {data.num_train:,} training and '
        f'{data.num_val:,} validation images' + (' (held out)' if data.split else '')
    )
    if purpose == 'test':
        _check_checkpoint(cfg.get('load_from'), data)
        print_log(text, logger='current')
        return
    _tell_absent(data)
    _set_schedule(cfg, data.num_train, images_per_update, kept)
    options.fitted_to = os.path.realpath(root)
    # Noted in checkpoints, so that a run is resumed with the same (engine/resume.py).
    cfg.fitted_length = dict(
        max_iters=cfg.train_cfg.max_iters,
        images_per_update=images_per_update,
        classes=len(data.classes),
        split=data.split,
    )
    print_log(
        f'{text}; {cfg.train_cfg.max_iters:,} iterations of {images_per_update} images, learning '
        f'rate {cfg.optim_wrapper.optimizer.lr:.3g}',
        logger='current',
    )


# ------------------------------------------------------------------------------------------ folders


def _data_root(cfg: Config) -> Path:
    if not cfg.get('data_root'):
        raise UsageError(
            f'{cfg.filename} needs images and label maps: --cfg-options data_root=DIR, with '
            f'DIR/images/... and DIR/annotations/..., or parts train and val below both'
        )
    root = Path(str(cfg.data_root)).expanduser()
    if not root.is_dir():
        found = 'it is a file' if root.exists() else 'it does not exist'
        raise InputError(f'data_root={root} should be a folder, but {found}')
    return root


def _check_others(options: ConfigDict) -> None:
    if not isinstance(options.get('reduce_zero_label'), bool):
        raise UsageError(
            f'own_data.reduce_zero_label should be True or False, but got '
            f'{options.get("reduce_zero_label")!r}'
        )


def _find_parts(root: Path, options: ConfigDict) -> tuple[Part, Part | None]:
    """Folders of training and validation; None where the latter is to be held out."""
    named = {part: _named_part(root, options, part) for part in _PARTS}
    train, val = (named[part] or _found_part(root, part) for part in _PARTS)
    if train is None and val is not None:
        raise MissingFileError(
            f'data_root={root} holds validation images, {val.images}, but none to train with: '
            f'name them by own_data.train_images and own_data.train_labels'
        )
    if train is None:
        train = _whole(root)
    if val is not None and (_overlap(train.images, val.images)):
        raise UsageError(
            f'training folder {train.images} and validation folder {val.images} share images: name '
            f'others by own_data.train_images and own_data.val_images'
        )
    return train, val


def _overlap(first: Path, second: Path) -> bool:
    first, second = first.resolve(), second.resolve()
    return first.is_relative_to(second) or second.is_relative_to(first)


def _named_part(root: Path, options: ConfigDict, part: str) -> Part | None:
    keys = [f'{part}_images', f'{part}_labels']
    named = [options.get(key) for key in keys]
    if not any(named):
        return None
    if not all(named):
        given = keys[0] if named[0] else keys[1]
        other = keys[1] if named[0] else keys[0]
        raise UsageError(f'own_data.{given} is given without own_data.{other}: expected both')
    folders = [root / name for name in named]
    for key, folder in zip(keys, folders):
        if not folder.is_dir():
            inside = ', '.join(sorted(p.name for p in root.iterdir() if p.is_dir())[:8])
            raise InputError(
                f'own_data.{key}={options[key]}: no such folder in {root}, which holds '
                f'{inside or "none"}'
            )
    return Part(*folders)


def _found_part(root: Path, part: str) -> Part | None:
    """``images/<part>`` with ``annotations/<part>``, or ``<part>/images`` with ``...``."""
    for name in _PARTS[part]:
        images = _first(root, [f'{folder}/{name}' for folder in _IMAGES])
        labels = _first(root, [f'{folder}/{name}' for folder in _LABELS])
        if images is None:
            images = _first(root, [f'{name}/{folder}' for folder in _IMAGES])
            labels = _first(root, [f'{name}/{folder}' for folder in _LABELS])
        if images is not None and labels is not None:
            return Part(images, labels)
        if images is not None and part == 'train':
            raise MissingFileError(
                f'{images} has no label maps beside it: looked for '
                f'{", ".join(f"{folder}/{name}" for folder in _LABELS[:4])}; name their folder by '
                f'own_data.train_images and own_data.train_labels'
            )
    return None


def _whole(root: Path) -> Part:
    images, labels = _first(root, _IMAGES), _first(root, _LABELS)
    if images is None or labels is None:
        what = 'images' if images is None else 'label maps'
        inside = ', '.join(sorted(p.name for p in root.iterdir())[:8])
        raise MissingFileError(
            f'data_root={root} holds no folder of {what} (looked for '
            f'{", ".join((_IMAGES if images is None else _LABELS)[:4])}), but '
            f'{inside or "nothing"}; name it by own_data.train_images and own_data.train_labels'
        )
    return Part(images, labels)


def _first(root: Path, names: Iterable[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


# --------------------------------------------------------------------------------------------- maps


def _read(root: Path, options: ConfigDict, purpose: str) -> OwnMaps:
    """Look at all images and maps; the arguments are those of the data sets.

    A test whose classes are given leaves maps to the data set, which checks each that it loads.
    """
    train, val = _find_parts(root, options)
    suffix = options.get('label_suffix') or _label_suffix(train)
    common = dict(
        data_root=None, seg_map_suffix=suffix, reduce_zero_label=options.reduce_zero_label
    )
    split = dict(fraction=options.val_fraction, seed=options.split_seed)
    arguments = []
    for part, folders in (('train', train), ('val', val or train)):
        prefix = dict(img_path=str(folders.images), seg_map_path=str(folders.labels))
        holdout = None if val else dict(part=part, **split)
        arguments.append(dict(common, data_prefix=prefix, holdout=holdout))
    named = _class_names(root, options)
    records = [_records(kwargs, named) for kwargs in arguments]
    pixels = []
    if purpose != 'test' or not named:
        pixels = [_count_pixels(found, named, options.reduce_zero_label) for found in records]
    classes = named or _unnamed(pixels, options.reduce_zero_label)
    first = 1 if options.reduce_zero_label else 0
    for kwargs in arguments:
        kwargs['metainfo'] = dict(classes=classes)
    # Wherever the data lie, the same images give the same digest.
    names = '\n'.join(os.path.relpath(r['img_path'], (val or train).images) for r in records[1])
    digest = hashlib.sha256(os.fsencode(names))
    return OwnMaps(
        *arguments,
        classes,
        len(records[0]),
        len(records[1]),
        pixels[0][first : first + len(classes)].tolist() if pixels else [],
        None if val else digest.hexdigest()[:12],
    )


def _label_suffix(part: Part) -> str:
    """What label maps end in after the name of their image: the ending that most images find."""
    labels = sorted(_names_below(part.labels, ('.png', '.bmp', '.tif', '.tiff')))
    endings: Counter[str] = Counter()
    for image in sorted(_names_below(part.images, IMAGE_SUFFIXES))[:_SAMPLED]:
        stem = os.path.splitext(image)[0]
        for label in itertools.islice(labels, bisect.bisect_left(labels, stem), None):
            if not label.startswith(stem):
                break
            if os.sep not in label[len(stem) :]:
                endings[label[len(stem) :]] += 1
    if endings:
        return max(endings, key=lambda ending: (endings[ending], -len(ending)))
    raise MissingFileError(
        f'{part.labels}: no label map is named as an image of {part.images}; '
        + (f'it holds {labels[0]}' if labels else 'it holds no .png, .bmp or .tif file')
    )


def _names_below(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    return [
        os.path.relpath(os.path.join(where, name), folder)
        for where, _, files in os.walk(folder, followlinks=True)
        for name in files
        if name.lower().endswith(suffixes) and not name.startswith('.')
    ]


def _records(arguments: dict, classes: list[str] | None) -> list[dict]:
    dataset = DATASETS.build(
        dict(
            type='EVASegmentationFolder',
            pipeline=[dict(type='LoadAnnotations')],
            serialize_data=False,
            metainfo=dict(classes=classes or ['unknown']),
            **arguments,
        )
    )
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def _class_names(root: Path, options: ConfigDict) -> list[str] | None:
    given = options.get('classes')
    if isinstance(given, (list, tuple)):
        names = [str(name) for name in given]
        if not names or len(set(names)) < len(names):
            raise UsageError(f'own_data.classes should be names, each once, but got {names}')
        return names
    if given is not None:
        for file in (root / str(given), Path(str(given))):
            if file.is_file():
                return read_class_names(file)
        raise MissingFileError(
            f'own_data.classes={given}: neither {root / str(given)} nor {given} is a file'
        )
    found = next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)
    return read_class_names(found) if found else None


def _count_pixels(
    records: Sequence[dict], classes: list[str] | None, reduce_zero_label: bool
) -> np.ndarray:
    """(256,) pixels with each number, over all maps, which are checked on the way.

    Raises:
        InputError: a map cannot be read, or has numbers that no class has.
    """
    number = IGNORED - int(reduce_zero_label) if classes is None else len(classes)
    table = label_table(number, reduce_zero_label)

    def count(record: dict) -> np.ndarray:
        label = read_label(record['seg_map_path'])
        look_up(label, table, record['seg_map_path'])
        return np.bincount(label.ravel(), minlength=256)

    total, told = np.zeros(256, np.int64), time.monotonic()
    with ThreadPoolExecutor(_READERS) as pool:
        for done, counts in enumerate(pool.map(count, records), 1):
            total += counts
            if time.monotonic() - told >= _TELL_EVERY:
                print_log(f'label maps: {done:,} of {len(records):,} looked at', 'current')
                told = time.monotonic()
    return total


def _unnamed(pixels: Sequence[np.ndarray], reduce_zero_label: bool) -> list[str]:
    """A name for every number up to the largest that is not ignored."""
    first = 1 if reduce_zero_label else 0
    used = np.flatnonzero(sum(pixels)[:IGNORED])
    highest = int(used.max()) if len(used) else -1
    if highest < first:
        raise InputError(
            f'the label maps hold no class: expected numbers from {first} on, all pixels are '
            f'ignored ({IGNORED}{" or 0" if first else ""})'
        )
    return [f'class {number}' for number in range(first, highest + 1)]


def _tell_absent(data: OwnMaps) -> None:
    absent = [name for name, count in zip(data.classes, data.pixels) if not count]
    if absent:
        print_log(
            f'{len(absent)} of {len(data.classes)} classes are in no training image: '
            f'{", ".join(absent[:8])}{" ..." if len(absent) > 8 else ""}',
            'current',
            level=30,
        )


# ------------------------------------------------------------------------------------------- config


def _set_data(cfg: Config, data: OwnMaps) -> None:
    for loader, arguments in (('train', data.train), ('val', data.val), ('test', data.val)):
        dataset = cfg[f'{loader}_dataloader'].dataset
        dataset.pop('metainfo', None)
        dataset.update(arguments)
    set_classes(cfg.model.decode_head, len(data.classes))


def set_classes(head: Any, number: int) -> None:
    """Give a Mask2Former head's config another number of classes; the void class keeps its weight.

    Args:
        head: ``decode_head``.
        number: of classes.
    """
    head.num_classes = number
    weights = head.loss_cls.class_weight
    head.loss_cls.class_weight = [1.0] * number + [weights[-1]]


def _set_schedule(cfg: Config, num_images: int, images_per_update: int, kept: Collection) -> None:
    """Warm-up times linear decay over ``own_data.epochs``; the rate by the root of the batch.

    Square root: the rule for Adam (arXiv 2205.10330).
    """
    options = cfg.own_data
    total = max(math.ceil(options.epochs * num_images / images_per_update), options.min_iterations)
    total = cfg.train_cfg.max_iters if 'train_cfg.max_iters' in kept else max(total, _SHORTEST)
    if total < _SHORTEST:
        raise UsageError(
            f'a run of {total} iterations is too short for warm-up and decay: expected '
            f'train_cfg.max_iters of {_SHORTEST} or more'
        )
    cfg.train_cfg.max_iters = total
    if 'train_cfg.val_interval' not in kept:
        cfg.train_cfg.val_interval = max(1, math.ceil(total / options.num_validations))
    if 'default_hooks.checkpoint.interval' not in kept:
        cfg.default_hooks.checkpoint.interval = cfg.train_cfg.val_interval
    if not any(key.startswith('param_scheduler') for key in kept):
        rise, fall = cfg.param_scheduler
        rise.end = max(min(options.warm_up, total // 10), 1) + 1
        fall.end = total + 1
    if 'optim_wrapper.optimizer.lr' not in kept:
        factor = math.sqrt(images_per_update / cfg.auto_scale_lr.base_batch_size)
        cfg.optim_wrapper.optimizer.lr *= factor
    cfg.auto_scale_lr.base_batch_size = images_per_update  # the rate is that of this batch


def _check_checkpoint(path: str | None, data: OwnMaps) -> None:
    """Refuse a checkpoint of other classes or another split."""
    trained = list((read_meta(path).get('dataset_meta') or {}).get('classes') or data.classes)
    if trained != data.classes:
        raise UsageError(
            f'{path} was trained on {len(trained)} classes ({", ".join(trained[:5])} ...), but the '
            f'data have {len(data.classes)} ({", ".join(data.classes[:5])} ...)'
        )
    check_split(path, data.split)
