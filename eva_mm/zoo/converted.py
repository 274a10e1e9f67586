"""Published checkpoints under the names of this package, converted once per content."""

from __future__ import annotations

import functools
import importlib
import os
import time
import uuid
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from eva_mm.errors import InputError

from .convert import convert
from .download import (
    content_digest,
    fetch,
    lock,
    read_record,
    repository_cache,
    sha256_of,
    unchanged,
    writable,
    write_record,
)
from .files import WriteError, pack, pick_weights, write_checkpoint
from .keys import TABLES, class_rows
from .reading import read_checkpoint
from .table import PublishedModel, find_model

# Raised when conversion changes, so that what older versions made is not used.
_VERSION = 2
_HOUR = 3600


def converted_file(name: str) -> Path:
    """Local copy of a published checkpoint under the names of this package.

    Downloaded and verified if it is not there. Where the published names are ours, that copy itself
    is returned. Safe for many processes at once: one downloads and converts, the others wait.

    Converted copies lie in the folder ``eva_mm`` of the repository in the hub's cache, or of
    ``HF_HOME`` where that cannot be written, named by the sha256 of what they were made from. Size
    and sha256 of each are recorded beside it: one that was damaged is made anew. If neither folder
    can be written, the published file is returned with a warning; models of this package take its
    names as well.

    Args:
        name: see :func:`eva_mm.zoo.table.find_model`.

    Raises:
        InputError: no checkpoint of that name, or it holds no weights.
        DownloadError: see :func:`eva_mm.zoo.download.fetch`.
    """
    model = find_model(name)
    if model.kind == 'data':
        raise InputError(f'{model.name} ({model.file}) holds no weights, expected a model')
    if model.kind not in TABLES:
        return fetch(model.name)
    published = fetch(model.name, copies=2)
    file = f'{model.name}-{content_digest(published)[:16]}-v{_VERSION}.pth'
    copies = [folder / file for folder in _folders()]
    for copy in copies:
        if unchanged(copy, read_record(_record_of(copy))):
            return copy
    reason: object = 'it cannot be written'
    for copy in copies:
        try:
            with lock(copy.parent / '.locks' / f'{file}.lock', f'converts {model.file}'):
                if _intact(copy) or (writable(copy.parent) and _make(copy, published, model)):
                    return copy
        except WriteError as error:
            reason = error
    warnings.warn(
        f'no converted copy of {model.file} can be kept in {copies[0].parent} ({reason}): its '
        'names are converted at every start; set HF_HUB_CACHE to a folder with room',
        stacklevel=2,
    )
    return published


def _folders() -> list[Path]:
    from huggingface_hub import constants

    return [repository_cache() / 'eva_mm', Path(constants.HF_HOME, 'eva_mm')]


def _record_of(copy: Path) -> Path:
    return copy.with_suffix('.json')


def _intact(copy: Path) -> bool:
    """Whether a copy is what was written; it is read if its time of change is another."""
    record = read_record(_record_of(copy))
    if unchanged(copy, record):
        return True
    if record is None or not copy.is_file() or copy.stat().st_size != record['size']:
        return False
    if sha256_of(copy, copy.name) != record['sha256']:
        return False
    with suppress(OSError):
        write_record(_record_of(copy), copy, record['sha256'])
    return True


def _make(copy: Path, published: Path, model: PublishedModel) -> bool:
    """Convert into a file of this process alone, and give it its name if it is still needed."""
    own = copy.with_name(f'.{uuid.uuid4().hex}-{copy.name}')
    _remove_abandoned(copy)
    try:
        write_checkpoint(_convert(published, model), own)
        sha256 = sha256_of(own, copy.name)
        if not _intact(copy):  # else another process was first, where locks do nothing
            os.replace(own, copy)
            write_record(_record_of(copy), copy, sha256)
    except InputError:
        raise
    except OSError as error:
        raise WriteError(f'{copy} cannot be written: {error.strerror}') from error
    finally:
        with suppress(OSError):
            own.unlink()
    return True


def _remove_abandoned(copy: Path) -> None:
    """Remove what a process that was killed left of its conversion."""
    for left in copy.parent.glob(f'.*-{copy.name}*'):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _HOUR:
                left.unlink()


def _convert(published: Path, model: PublishedModel) -> dict:
    checkpoint = read_checkpoint(published, map_location='cpu', mmap=True)
    try:
        weights, _ = pick_weights(checkpoint)
        # A model that is loaded with them tells what it lacks or does not know.
        converted, _ = convert(weights, 'mm', model.kind, allow_unknown=True, allow_partial=True)
    except InputError as error:
        raise InputError(f'{model.file}: {error}') from error
    meta = class_names(model.name) or placeholder_names(model.name, converted)
    return pack(converted, 'mm', meta)


@functools.cache
def class_names(name: str) -> dict[str, Any] | None:
    """``dataset_meta`` of a published checkpoint: its class names, in the order of its outputs.

    They come from the package whose data set the model was trained on.

    Returns:
        ``classes`` and what else the data set's ``METAINFO`` has; None where the order is not
        published, or the package is not installed.

    Raises:
        ImportError: the package is there, but cannot be imported.
    """
    dataset = find_model(name).dataset
    if dataset is None:
        return None
    module, _, owner = dataset.rpartition('.')
    try:
        info = getattr(importlib.import_module(module), owner).METAINFO
    except ModuleNotFoundError as error:
        if error.name != module.partition('.')[0]:
            raise
        return None
    return {key: value for key, value in info.items() if value is not None}


def placeholder_names(name: str, weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Numbered classes of a detector whose order of classes is not published.

    Without any names mmdet would draw those of COCO.

    Args:
        name: of a published checkpoint.
        weights: of it, under published names or ours; their head tells the number of classes.

    Returns:
        ``{'classes': ('objects365 class 0', ...)}``; None for all but such detectors.
    """
    model = find_model(name)
    if model.kind != 'detector' or model.dataset is not None:
        return None
    table = TABLES[model.kind]
    official = table.to_official(table.to_mm(dict(weights)))
    rows = class_rows(official, model.kind)
    count = next((len(official[key]) - extra for key, extra in rows.items()), 0)
    data = Path(model.config).parent.name if model.config else model.name
    return {'classes': tuple(f'{data} class {index}' for index in range(count))} if count else None
