"""A config that fits itself to a folder in COCO format: classes, heads, masks, schedule.

``configs/coco/eva_cascade_finetune.py`` names :func:`fit_to_data` under ``fit_config``; the tools
call it when the command line is merged in.
"""

import atexit
import functools
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import pycocotools.mask as mask_utils
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from eva_mm.engine.own_data import SPLIT_OPTIONS, Option, check_fitted, check_options, check_split
from eva_mm.engine.processes import on_first_process
from eva_mm.engine.saving import write_whole
from eva_mm.errors import InputError, UsageError

from .datasets import load_annotation_file, require_fields
from .own_data_files import (
    find_annotations,
    find_images,
    missing_images,
    named_path,
    no_annotations,
    split,
)

_ADVICE = 'docs/own_data.md tells of layouts'
_ORIGIN = 'configs/coco/eva_cascade_finetune.py'


class Part(NamedTuple):
    """A training or validation set.

    Attributes:
        ann_file: annotation file in COCO format.
        images: folder that its file names are relative to.
        num_images: those with an instance that is no crowd (all that training uses).
        num_instances: without crowds.
    """

    ann_file: str
    images: str
    num_images: int
    num_instances: int


class OwnData(NamedTuple):
    """What a config needs to know of a data set.

    Attributes:
        train, val: the two parts.
        classes: names by ascending category id.
        masks: ``None`` for boxes alone, else ``'polygons'`` or ``'bitmaps'`` (run lengths).
        untrained: classes without a training instance.
        split: digest of what decided the split; ``None`` when the data set has one itself.
    """

    train: Part
    val: Part
    classes: tuple[str, ...]
    masks: str | None
    untrained: tuple[str, ...]
    split: str | None


def fit_to_data(
    cfg: Config, images_per_update: int, kept: Collection[str] = (), purpose: str = 'train'
) -> None:
    """Fits a config of EVA's detector to the data set in ``data_root``, in place.

    Sets data sets and evaluators, the number of classes, masks or none, and a schedule scaled to
    the data. The settings under ``own_data`` say how; see ``configs/coco/eva_cascade_finetune.py``.
    A config that is fitted already, as the one that a training saves in its work dir, is left
    alone. Files are written below ``work_dir``, by the first process.

    Args:
        cfg: with ``work_dir``.
        images_per_update: over all processes and accumulated passes.
        kept: dotted keys that the command line set, which stay.
        purpose: ``'train'``; ``'test'``, which leaves the schedule alone; or ``'dry_run'``, which
            writes nothing below ``work_dir``.

    Raises:
        InputError: ``data_root`` is no folder, annotations or images are not found or could be
            several, or their content cannot be used; the message names the option that decides.
        UsageError: options ask for something else than the work dir or a fitted config holds.
    """
    options = cfg.own_data
    root = _data_root(cfg)
    check_options(options, _OPTIONS, _OTHERS)
    if options.get('fitted_to') is not None:
        told = check_fitted(cfg, root, images_per_update, kept, purpose, _ORIGIN)
        if told:
            print_log(told, logger='current', level=30)
        return
    read = functools.partial(read_own_data, root, options, Path(cfg.work_dir), purpose)
    data = on_first_process(read)
    if not all(os.path.isfile(part.ann_file) for part in (data.train, data.val)):
        data = read()  # another node, which does not see the work dir of the first process
    if purpose == 'test':
        check_split(cfg.get('load_from'), data.split)
    _set_data(cfg, data, kept)
    _set_model(cfg, data)
    if purpose == 'test':
        # The number of training processes is unknown: what a test saves is fitted anew.
        print_log('\n'.join(_describe(root, data)), logger='current')
        return
    options.fitted_to = str(root)
    _set_schedule(cfg, data, images_per_update, kept)
    print_log('\n'.join([*_describe(root, data), _schedule(cfg, data)]), logger='current')


_OPTIONS = {
    **SPLIT_OPTIONS,
    'epochs': Option(float, 'above 0', lambda value: value > 0),
    'min_images': Option(int, '0 or more', lambda value: value >= 0),
    'min_iterations': Option(int, '1 or more', lambda value: value >= 1),
    'warm_up': Option(int, '0 or more', lambda value: value >= 0),
    'num_validations': Option(int, '1 or more', lambda value: value >= 1),
}
_OTHERS = (
    'train_ann', 'train_images', 'val_ann', 'val_images', 'masks', 'steps', 'fitted_to',
)  # fmt: skip


def _data_root(cfg: Config) -> Path:
    if not cfg.get('data_root'):
        raise UsageError(
            f'{cfg.filename} needs a folder in COCO format: --cfg-options data_root=DIR ({_ADVICE})'
        )
    root = Path(str(cfg.data_root)).expanduser()
    if not root.is_dir():
        found = 'it is a file' if root.exists() else 'it does not exist'
        raise UsageError(f'data_root={root} should be a folder in COCO format, but {found}')
    return root


# ------------------------------------------------------------------------------------------ reading


def read_own_data(root: Path, options: ConfigDict, work_dir: Path, purpose: str) -> OwnData:
    """Finds, reads and checks a data set; writes the parts of a split below ``work_dir``.

    Args:
        root: folder of the data set; nothing is written there.
        options: ``own_data`` of the config.
        work_dir: of the run.
        purpose: see :func:`fit_to_data`.
    """
    train_file, val_file = _annotation_files(root, options)
    train, digest = _read(train_file), None
    train_images = val_images = _images(root, train_file, train, 'train', options)
    if val_file is None:
        if options.get('val_images'):
            raise InputError(
                f'own_data.val_images={options.val_images}: no annotation file of validation '
                f'images was found in {root}; name it: own_data.val_ann=FILE'
            )
        masks = _kind_of_masks([(train_file, train)], options)
        train_file, val_file, digest = _split(train_file, train, masks, options, work_dir, purpose)
        train, val = _read(train_file), _read(val_file)
    else:
        val = _read(val_file)
        val_images = _images(root, val_file, val, 'val', options)
        _refuse_shared_images(train, train_images, val, val_images, options)
        _check_categories(train, train_file, val, val_file)
        masks = _kind_of_masks([(train_file, train), (val_file, val)], options)
        completed = _completed(val, train, masks)
        if completed is not val:
            val, val_file = completed, _write_copy(completed, work_dir, purpose)
    for path, data, folder in ((train_file, train, train_images), (val_file, val, val_images)):
        if not _instances(data):
            raise InputError(f'{path}: none of its annotations is an instance to learn or measure')
        _check_images(path, data, folder)
        _warn_of_boxes_outside(path, data)
    names = {category['id']: str(category['name']) for category in train['categories']}
    seen = {entry['category_id'] for entry in _instances(train)}
    return OwnData(
        train=_part(train_file, train_images, train),
        val=_part(val_file, val_images, val),
        classes=tuple(names[i] for i in sorted(names)),
        masks=masks,
        untrained=tuple(names[i] for i in sorted(names) if i not in seen),
        split=digest,
    )


def _split(
    ann_file: Path,
    data: dict,
    masks: str | None,
    options: ConfigDict,
    work_dir: Path,
    purpose: str,
) -> tuple[Path, Path, str]:
    """Files of the two parts, written unless they are there, and a digest of what decides them."""
    made_by = {
        'annotation file (sha256)': _digest(ann_file.read_bytes()),
        'own_data.val_fraction': options.val_fraction,
        'own_data.split_seed': options.split_seed,
        'masks': bool(masks),
    }
    digest = _digest(json.dumps(made_by).encode())[:12]
    folder = work_dir / 'own_data'
    if not _is_kept(folder, made_by):
        data = dict(data, annotations=_with_points(data['annotations'], masks))
        try:
            train, val = split(data, options.val_fraction, options.split_seed)
        except InputError as error:
            raise InputError(f'{ann_file}: {error}') from error
        folder = _folder(work_dir, purpose)
        _write(folder / 'train.json', train)
        _write(folder / 'val.json', _completed(val, train, masks))
        _write(folder / 'split.json', made_by)  # last: with it the others are complete
    return folder / 'train.json', folder / 'val.json', digest


def _is_kept(folder: Path, made_by: dict) -> bool:
    """Whether a work dir holds this split.

    Raises:
        UsageError: it holds another, whose training images may be validation images of this one.
    """
    files = [folder / name for name in ('split.json', 'train.json', 'val.json')]
    if not all(path.is_file() for path in files):
        return False
    try:
        before = dict(json.loads(files[0].read_text(encoding='utf-8')))
    except ValueError as error:
        raise InputError(f'{files[0]} cannot be read ({error}); remove {folder}') from error
    other = [
        f'{key} was {_short(before.get(key))}, now it is {_short(made_by[key])}'
        for key in made_by
        if before.get(key) != made_by[key]
    ]
    if other:
        raise UsageError(
            f'{folder} holds another split of the images: {"; ".join(other)}. Images that were '
            f'trained on would be in the validation: give the options of the training, or test '
            f'with the config that it saved; to split anew take another --work-dir, or remove '
            f'{folder}'
        )
    return True


def _short(value: Any) -> str:
    return value[:8] if isinstance(value, str) else repr(value)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _folder(work_dir: Path, purpose: str) -> Path:
    """Where to write: a test apart from a training, a dry run where nothing is left behind."""
    if purpose != 'dry_run':
        return work_dir / ('own_data' if purpose == 'train' else 'own_data_test')
    folder = tempfile.mkdtemp(prefix='eva_mm_dry_run_')
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _write_copy(val: dict, work_dir: Path, purpose: str) -> Path:
    """A validation file named by its content, so that none takes the place of another."""
    name = f'val_{_digest(json.dumps(val).encode())[:12]}.json'
    kept = work_dir / 'own_data' / name
    return kept if kept.is_file() else _write(_folder(work_dir, purpose) / name, val)


def _annotation_files(root: Path, options: ConfigDict) -> tuple[Path, Path | None]:
    files = {}
    for role in ('train', 'val'):
        option = f'{role}_ann'
        if options.get(option):
            files[role] = named_path(root, options[option], f'own_data.{option}')
        else:
            files[role] = find_annotations(root, role)
    train = files['train'] or find_annotations(root, 'single', other=filter(None, [files['val']]))
    if train is None:
        raise no_annotations(root)
    return train, files['val']


def _read(path: Path) -> dict:
    data = load_annotation_file(str(path))
    require_fields(data['images'], 'images', ('file_name',), str(path))
    for image in data['images']:
        if not isinstance(image['file_name'], str):
            raise InputError(
                f'{path}: image id={image["id"]} has file_name {image["file_name"]!r}, expected '
                f'a text'
            )
    for section in ('images', 'categories', 'annotations'):
        if not data[section]:
            raise InputError(f'annotation file {path} lists no {section}')
        for entry in data[section]:
            if not isinstance(entry['id'], int | str):
                raise InputError(f'{path}: {section} hold id={entry["id"]!r}, expected a number')
        (most, count), *_ = Counter(entry['id'] for entry in data[section]).most_common(1)
        if count > 1:
            raise InputError(f'{path}: {section} are not unique, id={most} {count} times')
    _check_instances(data, path)
    return data


def _images(root: Path, ann_file: Path, data: dict, role: str, options: ConfigDict) -> Path:
    option = f'{role}_images'
    if options.get(option):
        return named_path(root, options[option], f'own_data.{option}')
    return find_images(root, ann_file, data, role)


def _refuse_shared_images(
    train: dict, train_images: Path, val: dict, val_images: Path, options: ConfigDict
) -> None:
    def files(data: dict, folder: Path) -> set[str]:
        return {os.path.realpath(folder / image['file_name']) for image in data['images']}

    shared = sorted(files(train, train_images) & files(val, val_images))
    if not shared:
        return
    text = f'{len(shared)} images are in the training and in the validation set, as {shared[0]}'
    if not options.get('val_ann'):
        raise InputError(
            f'{text}: AP would tell nothing (training images are those in {train_images}, '
            f'validation images those in {val_images}). Name the folder that is meant '
            f'(own_data.train_images, own_data.val_images), take them out of one file, or name the '
            f'validation file to use it all the same: own_data.val_ann=FILE'
        )
    print_log(f'{text}: AP will be too high', logger='current', level=30)


def _check_categories(train: dict, train_file: Path, val: dict, val_file: Path) -> None:
    """Labels follow category ids, so that an id has to mean the same class in both files."""
    names = {category['id']: category['name'] for category in train['categories']}
    for category in val['categories']:
        known = names.get(category['id'])
        if known != category['name']:
            what = 'no category of this id' if known is None else repr(known)
            raise InputError(
                f'{val_file}: category id={category["id"]} is {category["name"]!r}, in '
                f'{train_file} it is {what}; both files need the same ids and names'
            )


def _instances(data: dict) -> list[dict]:
    return [a for a in data['annotations'] if not (a.get('iscrowd') or a.get('ignore'))]


def _is_mask(segmentation: Any) -> bool:
    """Run lengths, or a polygon of three points at least; tools write boxes as two points."""
    if isinstance(segmentation, list):
        return any(
            not isinstance(part, list) or (len(part) >= 6 and len(part) % 2 == 0)
            for part in segmentation
        )
    return bool(segmentation)


def _kind_of_masks(files: list[tuple[Path, dict]], options: ConfigDict) -> str | None:
    """``'polygons'``, ``'bitmaps'`` or None; the same for training and validation."""
    if options.get('masks') is False:
        return None
    found = [a.get('segmentation') for _, data in files for a in data['annotations']]
    if options.get('masks') is None and not any(_is_mask(mask) for mask in found):
        return None
    for path, data in files:
        lacking = [a['id'] for a in data['annotations'] if not a.get('segmentation')]
        if lacking:
            raise InputError(
                f'{path}: {len(lacking)} of {len(data["annotations"])} annotations have no mask '
                f'(segmentation), first id={lacking[0]}; to train boxes alone: own_data.masks=False'
            )
    # Crowds are left out of training, and are run lengths in COCO's own files.
    _, train = files[0]
    lengths = any(isinstance(a['segmentation'], dict) for a in _instances(train))
    return 'bitmaps' if lengths else 'polygons'


def _with_points(annotations: list[dict], masks: str | None) -> list[dict]:
    """Annotations without polygons of fewer than three points, as the data set reads them.

    pycocotools would take one of two points for a box. An instance without any other has no mask,
    and is left out.
    """
    if masks is None:
        return annotations
    kept = []
    for entry in annotations:
        mask = entry['segmentation']
        parts = [p for p in mask if _is_mask([p])] if isinstance(mask, list) else mask
        if parts:
            kept.append(entry if len(parts) == len(mask) else dict(entry, segmentation=parts))
    return kept


def _completed(val: dict, train: dict, masks: str | None) -> dict:
    """The validation set as the metric needs it: masks, areas, and every class of training."""
    sizes = {image['id']: (image['height'], image['width']) for image in val['images']}
    annotations = [
        a if 'area' in a else dict(a, area=_area(a, sizes.get(a['image_id']), masks))
        for a in _with_points(val['annotations'], masks)
    ]
    fewer = len(val['categories']) < len(train['categories'])
    if annotations == val['annotations'] and not fewer:
        return val
    return dict(val, annotations=annotations, categories=train['categories'])


def _check_images(path: Path, data: dict, folder: Path) -> None:
    """Refuses missing images, before training comes to them."""
    names = [image['file_name'] for image in data['images']]
    if absent := missing_images(folder, names):
        raise InputError(
            f'{path}: {len(absent)} of {len(names)} images are not in {folder}, such as '
            f'{absent[0]}. Take them out of the file, or name another folder: '
            f'own_data.train_images, own_data.val_images'
        )


def _warn_of_boxes_outside(path: Path, data: dict) -> None:
    """Tells of boxes that leave their image: often x1, y1, x2, y2 in place of width and height."""
    sizes = {image['id']: (image['width'], image['height']) for image in data['images']}
    outside = []
    for entry in data['annotations']:
        (x, y, width, height), size = entry['bbox'], sizes[entry['image_id']]
        # A pixel or two is how tools round.
        if x + width > 1.01 * size[0] + 2 or y + height > 1.01 * size[1] + 2:
            outside.append(entry['id'])
    if outside:
        print_log(
            f'{path}: {len(outside)} of {len(data["annotations"])} boxes leave their image, first '
            f'id={outside[0]}; bbox should be [x, y, width, height]',
            logger='current',
            level=30,
        )


def _check_instances(data: dict, path: Path) -> None:
    """What the data set would find too, but before a split of it is written and kept."""
    images = {image['id'] for image in data['images']}
    categories = {category['id'] for category in data['categories']}
    for entry in data['annotations']:
        box = entry.get('bbox')
        if not (isinstance(box, list) and len(box) == 4):
            problem = f'bbox should be [x, y, width, height], found {box}'
        elif entry['image_id'] not in images:
            problem = f'image {entry["image_id"]} is not listed under images'
        elif entry['category_id'] not in categories:
            problem = f'category {entry["category_id"]} is not listed under categories'
        else:
            continue
        raise InputError(f'{path}: annotation id={entry["id"]}: {problem}')


def _area(entry: dict, size: tuple[int, int] | None, masks: str | None) -> float:
    """Area in square pixels of the mask, or of the box."""
    try:
        if masks is None or size is None:
            return float(entry['bbox'][2] * entry['bbox'][3])
        mask = entry['segmentation']
        if isinstance(mask, list):
            mask = mask_utils.merge(mask_utils.frPyObjects(mask, *size))
        elif isinstance(mask['counts'], list):
            mask = mask_utils.frPyObjects(mask, *size)
        return float(mask_utils.area(mask))
    except Exception as error:  # pycocotools raises anything
        raise InputError(
            f'annotation id={entry["id"]} has no area, and none can be computed of its '
            f'{"box" if masks is None else "mask"}: {type(error).__name__}: {error}'
        ) from error


def _part(ann_file: Path, images: Path, data: dict) -> Part:
    instances = _instances(data)
    used = {entry['image_id'] for entry in instances}
    return Part(str(ann_file), str(images), len(used), len(instances))


def _write(path: Path, data: dict) -> Path:
    text = json.dumps(data, ensure_ascii=False)
    write_whole(str(path), lambda file: file.write(text.encode()))
    return path


# -------------------------------------------------------------------------------------- the config


def _set_data(cfg: Config, data: OwnData, kept: Collection[str]) -> None:
    metric = ['bbox', 'segm'] if data.masks else 'bbox'
    for name in ('train', 'val', 'test'):
        part = data.train if name == 'train' else data.val
        cfg[f'{name}_dataloader'].dataset.update(
            data_root='', ann_file=part.ann_file, data_prefix=ConfigDict(img=part.images)
        )
        if name != 'train':
            cfg[f'{name}_evaluator'].ann_file = part.ann_file
            if f'{name}_evaluator.metric' not in kept:
                cfg[f'{name}_evaluator'].metric = metric
    for transform in cfg.train_dataloader.dataset.pipeline:
        if transform.type == 'LoadAnnotations':
            transform.update(with_mask=bool(data.masks), poly2mask=data.masks == 'bitmaps')


def _set_model(cfg: Config, data: OwnData) -> None:
    head = cfg.model.roi_head
    head.bbox_head.num_classes = len(data.classes)
    if data.masks:
        head.mask_head.num_classes = len(data.classes)
        return
    head.mask_head = head.mask_roi_extractor = None
    # Weights to start from may have one.
    cfg.model.allowed_unexpected = ['roi_head.mask_head.*']


def _set_schedule(
    cfg: Config, data: OwnData, images_per_update: int, kept: Collection[str]
) -> None:
    """Length, rate, warm-up, steps and intervals; the reasons stand in the config."""
    options, loop = cfg.own_data, cfg.train_cfg
    images = max(options.epochs * data.train.num_images, options.min_images)
    length = max(math.ceil(images / images_per_update), options.min_iterations)
    if 'train_cfg.max_iters' not in kept:
        loop.max_iters = length
    total = loop.max_iters
    # Noted in checkpoints, so that a run is resumed with the same (engine/resume.py).
    cfg.fitted_length = dict(images_per_update=images_per_update, max_iters=total, split=data.split)
    interval = max(1, math.ceil(total / options.num_validations))
    if 'train_cfg.val_interval' not in kept:
        loop.val_interval = interval
    if 'default_hooks.checkpoint.interval' not in kept:
        cfg.default_hooks.checkpoint.interval = interval
    saving = cfg.default_hooks.checkpoint
    metric = cfg.val_evaluator.metric
    if metric in ('segm', ['segm']) and saving.get('save_best') == 'coco/bbox_mAP':
        saving.save_best = 'coco/segm_mAP'
    if not any(key.startswith('param_scheduler') for key in kept):
        _set_rates(cfg, total)
    batch = cfg.auto_scale_lr.base_batch_size
    if 'optim_wrapper.optimizer.lr' not in kept:
        cfg.optim_wrapper.optimizer.lr *= math.sqrt(images_per_update / batch)
    cfg.auto_scale_lr.base_batch_size = images_per_update


def _set_rates(cfg: Config, total: int) -> None:
    warm_up, steps = cfg.param_scheduler
    # LinearLR reaches the full rate one step before its end.
    warm_up.end = min(cfg.own_data.warm_up, max(1, total // 10)) + 1
    steps.milestones = [round(total * share) for share in cfg.own_data.steps]


def _describe(root: Path, data: OwnData) -> list[str]:
    """What was found, in lines."""
    classes = ', '.join(data.classes[:8])
    more = f' and {len(data.classes) - 8} more' if len(data.classes) > 8 else ''
    lines = [f'fitted to {root}']
    for name, part in (('train', data.train), ('val', data.val)):
        lines.append(
            f'  {name}: {part.num_images:,} images with {part.num_instances:,} instances, '
            f'{part.ann_file}, images in {part.images}'
        )
    if data.split:
        lines.append('  there is no validation file: the images were split (own_data.val_fraction)')
    lines.append(f'  classes ({len(data.classes)}): {classes}{more}')
    if data.untrained:
        shown = ', '.join(data.untrained[:8])
        lines.append(f'  classes without a training instance ({len(data.untrained)}): {shown}')
    lines.append(
        f'  {"boxes and masks (" + data.masks + ")" if data.masks else "boxes; no mask head"}'
    )
    return lines


def _schedule(cfg: Config, data: OwnData) -> str:
    total, images = cfg.train_cfg.max_iters, cfg.fitted_length.images_per_update
    return (
        f'  schedule: {total:,} iterations of {images} images, '
        f'{total * images / max(1, data.train.num_images):.3g} epochs; learning rate '
        f'{cfg.optim_wrapper.optimizer.lr:.3g}; validation every {cfg.train_cfg.val_interval:,}'
    )
