"""Published checkpoints under the names of this package, converted once per content."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any

from eva_mm.errors import InputError

from .download import cached_file, content_digest
from .files import convert_file
from .keys import TABLES
from .table import find_model

# Raised when conversion changes, so that what older versions made is not used.
_VERSION = 1


def converted_file(name: str) -> Path:
    """Local copy of a published checkpoint under the names of this package.

    Downloaded and verified if it is not there. Where the published names are ours, that copy itself
    is returned. Safe for many processes at once: one downloads and converts, the others wait.
    Converted copies lie in ``HF_HOME/eva_mm``, named by the sha256 of what they were made from.

    Args:
        name: see :func:`eva_mm.zoo.table.find_model`.

    Raises:
        InputError: no checkpoint of that name, or it holds no weights.
        DownloadError: see :func:`eva_mm.zoo.download.fetch`.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock

    model = find_model(name)
    if model.kind == 'data':
        raise InputError(f'{model.name} ({model.file}) holds no weights, expected a model')
    published = cached_file(model.name, download=True)
    if model.kind not in TABLES:
        return published
    digest = content_digest(published)[:16]
    target = Path(constants.HF_HOME, 'eva_mm', f'{model.name}-{digest}-v{_VERSION}.pth')
    if target.is_file():
        return target
    (target.parent / '.locks').mkdir(parents=True, exist_ok=True)
    with WeakFileLock(target.parent / '.locks' / f'{target.name}.lock'):
        if not target.is_file():
            # A model that is loaded with them tells what it does not know.
            convert_file(published, target, kind=model.kind, allow_unknown=True)
    return target


@functools.cache
def class_names(name: str) -> dict[str, Any] | None:
    """``dataset_meta`` of a published checkpoint: its class names, in the order of its outputs.

    They come from the package whose data set the model was trained on.

    Returns:
        ``classes`` and what else the data set's ``METAINFO`` has; None where the order is not
        published, or the package is not installed.
    """
    dataset = find_model(name).dataset
    if dataset is None:
        return None
    module, _, owner = dataset.rpartition('.')
    try:
        info = getattr(importlib.import_module(module), owner).METAINFO
    except ImportError:
        return None
    return {key: value for key, value in info.items() if value is not None}
