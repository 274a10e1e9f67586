"""Published checkpoints by name: list, download, convert, load. Works without OpenMMLab."""

from __future__ import annotations

import importlib
from typing import Any

# Imported when asked for: each needs more than the table of names does.
_HOMES = {
    'PublishedModel': 'table',
    'convert_file': 'files',
    'fetch': 'download',
    'find_model': 'table',
    'load_model': 'load',
    'published_models': 'table',
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
