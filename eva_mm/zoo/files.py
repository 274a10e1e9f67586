"""Checkpoint files: which weights are taken out of them, and how they are written.

Files enter the disk whole or not at all.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eva_mm.errors import InputError, MissingFileError

from .convert import STYLES, Grid, Report, Weights, convert, require_one_of
from .download import publish
from .keys import PARTS
from .reading import INNER_KEYS, read_checkpoint
from .table import find_model

FORMATS = (*STYLES, 'safetensors')
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


def convert_file(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    to: str = 'mm',
    *,
    kind: str | None = None,
    names: str = 'mm',
    ema: bool = False,
    head_rows: str | os.PathLike | None = None,
    classes: str | os.PathLike | None = None,
    dataset: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    **changes: Any,
) -> Report:
    """Convert a checkpoint file; what ``tools/convert.py`` does.

    Args:
        src: file, DeepSpeed folder, or ``eva://NAME`` of a published checkpoint.
        dst: file to write, whole or not at all.
        to: 'mm' (``{'meta': {'dataset_meta': ...}, 'state_dict': ...}``), 'official'
            (``{'model': ...}``), 'timm' (names and tensors alone) or 'safetensors'.
        kind: see :func:`convert`.
        names: of a safetensors file: 'mm', 'official' or 'timm'.
        ema: take the moving average of the weights (``model_ema``).
        head_rows: file of :func:`load_head_rows`.
        classes: text file with a class name per line, those of the result. By default the
            source's names stay, in the order of the rows that ``head_rows`` keeps, and go with
            the head that ``drop_head`` leaves out.
        dataset: dotted name of a class with ``METAINFO``, e.g.
            ``'mmdet.datasets.LVISV1Dataset'``.
        dtype: a key of :data:`DTYPES`; None keeps each.
        force: replace ``dst`` where it exists.
        **changes: see :class:`Changes`; ``img_size`` and ``grid`` may be text, '336' or '224x336'.

    Raises:
        InputError: see :func:`convert`; or a file cannot be read or written.
    """
    for option in ('img_size', 'grid'):
        if isinstance(changes.get(option), str):
            changes[option] = _size(changes[option], option)
    require_one_of('to', to, FORMATS)
    require_one_of('names', names, STYLES)
    require_one_of('kind', kind, PARTS)
    require_one_of('dtype', dtype, DTYPES)
    if classes and dataset:
        raise InputError('give --classes or --dataset, not both')
    require_writable(dst, force, safetensors=to == 'safetensors')
    checkpoint = read_checkpoint(_local(src), map_location='cpu', mmap=True)
    if head_rows is not None:
        changes['head_rows'] = load_head_rows(head_rows)
    try:
        weights, note = pick_weights(checkpoint, ema)
        style = names if to == 'safetensors' else to
        converted, report = convert(
            weights, style, kind, dtype=DTYPES[dtype] if dtype else None, **changes
        )
        meta = _class_names(classes, dataset)
        if meta is None:
            stored = dataset_meta(checkpoint) or _published_names(src, weights)
            meta = _stored_names(stored, report, changes.get('drop_head', False))
        _require_names_fit(meta, report.classes and report.classes[1])
    except InputError as error:
        raise InputError(f'{src}: {error}') from error
    report.notes += [note] if note else []
    inner = any(key in checkpoint for key in INNER_KEYS)
    if beside := [str(k) for k in checkpoint if inner and k not in ('meta', *INNER_KEYS)]:
        report.notes.append(f'left out, since no weights: {", ".join(beside[:8])}')
    if not meta and report.classes and report.kind in ('detector', 'segmentor'):
        report.notes.append('no class names: --classes FILE or --dataset CLASS gives them')
    if meta and style in ('official', 'timm') and to != 'safetensors':
        report.notes.append(f'names of {len(meta["classes"])} classes have no place in this format')
    content = pack(converted, to, meta, kind=report.kind, names=style)
    write_checkpoint(content, dst)
    return report


def _published_names(src: str | os.PathLike, weights: Weights) -> dict | None:
    """Class names of a published checkpoint, given by name or as a file of its own name."""
    from .converted import class_names, placeholder_names

    name = str(src) if '://' in str(src) else Path(src).name
    try:
        find_model(name)
    except InputError:
        return None
    return class_names(name) or placeholder_names(name, weights)


def _size(text: str, option: str) -> Grid:
    """'336' -> (336, 336), '224x336' -> (224, 336)."""
    if not re.fullmatch(r'\d+(x\d+)?', text):
        option = '--' + option.replace('_', '-')
        raise InputError(f'{option} {text}: expected a number, or HEIGHTxWIDTH')
    sides = [int(side) for side in text.split('x')]
    return sides[0], sides[-1]


def _local(src: str | os.PathLike) -> str | os.PathLike:
    """Path of a checkpoint; a published one is downloaded into the hub's cache."""
    if '://' not in str(src):
        return src
    from .download import SCHEME, cached_file

    if not str(src).startswith(SCHEME):
        raise InputError(f'{src}: expected a file or {SCHEME}NAME of a published checkpoint')
    return cached_file(str(src), download=True)


def pick_weights(checkpoint: Mapping[str, Any], ema: bool = False) -> tuple[Weights, str | None]:
    """Weights in a checkpoint, without ``module.`` before all their names.

    Args:
        checkpoint: as read; its weights lie under ``state_dict``, ``model`` or ``module``, or are
            all there is.
        ema: take those under ``model_ema`` instead.

    Returns:
        Names and tensors; and what is worth telling of the choice.

    Raises:
        InputError: no weights are there, or something else is among them.
    """
    inner = [key for key in INNER_KEYS if isinstance(checkpoint.get(key), Mapping)]
    has_ema = isinstance(checkpoint.get('model_ema'), Mapping)
    note = None
    if ema and not has_ema:
        hint = ' (mmengine keeps the average under state_dict: leave --ema out)'
        raise InputError(
            f'--ema: there is no model_ema, but {", ".join(map(str, list(checkpoint)[:8]))}'
            + (hint if 'ema_state_dict' in checkpoint else '')
        )
    if ema:
        weights = checkpoint['model_ema']
    elif inner:
        weights = checkpoint[inner[0]]
        note = 'a moving average of the weights is there too: --ema takes it' if has_ema else None
    else:
        weights = checkpoint
    weights = dict(weights)
    while weights and all(str(name).startswith('module.') for name in weights):
        weights = {name.removeprefix('module.'): value for name, value in weights.items()}
    others = {str(k): type(v).__name__ for k, v in weights.items() if not isinstance(v, Tensor)}
    if others or not weights:
        found = ', '.join(f'{k} ({v})' for k, v in list(others.items())[:8]) or 'nothing'
        raise InputError(f'no weights: expected names and tensors, found {found}')
    return weights, note


def read_weights(path: str | os.PathLike) -> tuple[Weights, dict]:
    """Weights in a file, still on disk where its format allows, and all that it holds.

    Raises:
        InputError: the file cannot be read, or holds no weights; it is named.
    """
    checkpoint = read_checkpoint(path, map_location='cpu', mmap=True)
    try:
        return pick_weights(checkpoint)[0], checkpoint
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def dataset_meta(checkpoint: Mapping[str, Any]) -> dict | None:
    """Class names that a checkpoint carries, under mmengine's names or those of mmcv 1.x."""
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping):
        return None
    if isinstance(meta.get('dataset_meta'), Mapping):
        found = {str(key).lower(): value for key, value in meta['dataset_meta'].items()}
    else:
        found = {k.lower(): meta[k] for k in ('CLASSES', 'PALETTE') if meta.get(k) is not None}
    return found if found.get('classes') else None


def _class_names(classes: str | os.PathLike | None, dataset: str | None) -> dict | None:
    if classes is not None:
        names = _read_text(classes, '--classes').strip().splitlines()
        if not names or not all(name.strip() for name in names):
            raise InputError(f'--classes {classes}: expected a name on every line')
        return {'classes': tuple(name.strip() for name in names)}
    return None if dataset is None else _metainfo(dataset)


def _metainfo(dataset: str) -> dict:
    module, _, name = dataset.rpartition('.')
    try:
        info = getattr(importlib.import_module(module), name).METAINFO
        plain = {key: value for key, value in info.items() if value is not None}
        return {**plain, 'classes': tuple(info['classes'])}
    except (ImportError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f'--dataset {dataset}: expected the dotted name of a class whose METAINFO has classes, '
            f'such as mmdet.datasets.LVISV1Dataset ({type(error).__name__}: {error})'
        ) from error


def _stored_names(meta: dict | None, report: Report, drop_head: bool) -> dict | None:
    """The source's class names, and what else it has one of per class, for the rows kept."""
    if meta and drop_head:
        report.notes.append(f'the names of {len(meta["classes"])} classes went with the head')
        return None
    if meta is None or report.head_rows is None:
        return meta
    count = report.classes[0]
    _require_names_fit(meta, count)
    return {
        key: type(value)(value[i] for i in report.head_rows)
        if isinstance(value, list | tuple) and len(value) == count
        else value
        for key, value in meta.items()
    }


def _require_names_fit(meta: dict | None, count: int | None) -> None:
    """A name for every class of the head."""
    if meta and count is not None and len(meta['classes']) != count:
        raise InputError(
            f'{len(meta["classes"])} class names for a head of {count} classes; '
            '--classes FILE or --dataset CLASS gives others'
        )


def load_head_rows(path: str | os.PathLike) -> Tensor:
    """Rows of a head: int64 indices (K,), or a boolean mask over all classes.

    Args:
        path: of a ``.npy`` array, a ``.json`` list, or a text file with an entry per word:
            numbers, or ``true`` and ``false``. More than two entries, all of them 0 or 1, are a
            mask as well.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    values = _read_npy(path) if str(path).endswith('.npy') else _read_list(path)
    rows = torch.as_tensor(values)
    if rows.is_floating_point() or rows.ndim != 1 or not len(rows):
        raise InputError(f'--head-rows {path}: expected one list of whole numbers or booleans')
    if rows.dtype != torch.bool and len(rows) > 2 and bool(((rows == 0) | (rows == 1)).all()):
        return rows.bool()
    return rows if rows.dtype == torch.bool else rows.long()


def _read_npy(path: str | os.PathLike) -> Tensor:
    import numpy as np

    if not os.path.isfile(path):
        raise MissingFileError(f'--head-rows: file {path} does not exist')
    try:
        array = np.load(path, allow_pickle=False)
        if array.dtype.kind not in 'iub':
            raise InputError(
                f'--head-rows {path}: expected whole numbers or booleans, found {array.dtype}'
            )
        return torch.from_numpy(array if array.dtype == bool else array.astype(np.int64))
    except InputError:
        raise
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise InputError(f'--head-rows {path}: no array of numbers ({error})') from error


def _read_list(path: str | os.PathLike) -> list:
    text = _read_text(path, '--head-rows')
    try:
        if str(path).endswith('.json'):
            values = json.loads(text)
        else:
            values = [json.loads(word.lower()) for word in text.replace(',', ' ').split()]
        return torch.as_tensor(values).tolist()
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f'--head-rows {path}: expected whole numbers, or true and false ({error})'
        ) from error


def _read_text(path: str | os.PathLike, option: str) -> str:
    try:
        return Path(path).read_text(encoding='utf-8')
    except FileNotFoundError as error:
        raise MissingFileError(f'{option}: file {path} does not exist') from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'{option}: {path} is no text file ({error})') from error


# ------------------------------------------------------------------------------------- writing


def pack(
    weights: Weights, to: str, meta: dict | None = None, **metadata: str
) -> dict | tuple[Weights, dict[str, str]]:
    """Content of a file in one of :data:`FORMATS`, for :func:`write_checkpoint`.

    Args:
        weights: names and tensors, as the file shall have them.
        to: 'mm', 'official', 'timm' or 'safetensors'.
        meta: ``dataset_meta``, with ``classes``.
        **metadata: further entries in the metadata of a safetensors file.
    """
    if to == 'official':
        return {'model': weights}
    if to == 'timm':
        return weights
    if to == 'mm':
        return {'meta': {'dataset_meta': meta} if meta else {}, 'state_dict': weights}
    # The format sorts tensors; their order is what optimizer states go by.
    metadata = {'format': 'pt', **metadata, 'order': '\n'.join(weights)}
    if meta:
        metadata['dataset_meta'] = json.dumps(meta)
    return weights, metadata


def require_writable(dst: str | os.PathLike, force: bool, safetensors: bool) -> None:
    """Refuse to replace a file, and an ending that belies the format; before anything is read.

    Raises:
        InputError: ``dst`` is there and ``force`` is off, is a folder, or ends wrongly.
    """
    path = Path(dst)
    if path.is_dir():
        raise InputError(f'{dst} is a folder, expected the name of a file to write')
    if path.exists() and not force:
        raise InputError(f'{dst} exists; --force replaces it')
    if safetensors != (path.suffix == '.safetensors'):
        wanted = 'end in .safetensors' if safetensors else 'not end in .safetensors (--to)'
        raise InputError(f'{dst}: the name of this file should {wanted}')


class WriteError(InputError):
    """A file cannot be written."""


def write_checkpoint(
    content: dict | tuple[Weights, dict[str, str]], dst: str | os.PathLike
) -> None:
    """Write what :func:`pack` gave under a temporary name, then rename it.

    Equal content gives equal files.

    Raises:
        WriteError: the disk is too small or refuses; nothing is left behind.
        InputError: safetensors is not installed.
    """
    path = Path(dst)
    weights = content[0] if isinstance(content, tuple) else _tensors(content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_space(path, _bytes(weights.values()))
        _write_whole(path, lambda file: _write(content, file))
    except InputError:
        raise
    except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
        raise WriteError(f'{dst} cannot be written: {str(error).splitlines()[0]}') from error


def _write(content: dict | tuple[Weights, dict[str, str]], file: Path) -> None:
    if isinstance(content, dict):
        with open(file, 'wb') as stream:  # given a path, torch writes the name into the file
            torch.save(content, stream)
        return
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise InputError(
            'a safetensors file is written by a package: pip install safetensors'
        ) from error
    weights, metadata = content
    save_file(_apart(weights), file, metadata)


def _apart(weights: Weights) -> Weights:
    """Tensors that share no memory and have no gaps, which safetensors cannot express."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in weights.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        apart[name] = tensor if alone and tensor.is_contiguous() else tensor.clone().contiguous()
    return apart


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    # Process numbers are equal in containers that share a disk.
    temporary = path.with_name(f'{path.name}.{uuid.uuid4().hex}.tmp')
    temporary.touch(exist_ok=False)
    try:
        write(temporary)
        publish(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _tensors(content: Mapping[str, Any]) -> Weights:
    inner = next((content[key] for key in INNER_KEYS if key in content), content)
    return dict(inner)


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Size of tensors, those that share memory counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise WriteError(
            f'{path} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {path.parent}'
        )
