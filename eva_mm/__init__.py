"""EVA (arXiv 2211.07636) for OpenMMLab 2.x.

Importing this package imports no host: mmengine enters when a config is asked for, mmcv and the
task packages when the adapter of that task is imported (``import eva_mm.detection``).
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from eva_mm.version import __version__

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ['__version__', 'config_path', 'get_config', 'list_configs']


def resource_dir(name: str) -> Path:
    """Folder of files that lie beside the package in a checkout and inside it in a wheel.

    Args:
        name: ``'configs'`` or ``'requirements'``.

    Returns:
        ``eva_mm/.mim/<name>`` of an installed wheel (the place where OpenMMLab's packages ship
        theirs), else ``<name>`` in the checkout.

    Raises:
        FileNotFoundError: neither is there.
    """
    package = Path(__file__).resolve().parent
    candidates = [package / '.mim' / name, package.parent / name]
    for folder in candidates:
        if folder.is_dir():
            return folder
    tried = ' or '.join(str(folder) for folder in candidates)
    raise FileNotFoundError(f'eva_mm ships its {name} in {tried}, and neither is a folder')


def list_configs() -> list[str]:
    """Names of all runnable configs (not the ``_base_`` parts), such as ``'lvis/eva_cascade'``."""
    folder = resource_dir('configs')
    names = (path.relative_to(folder).with_suffix('') for path in folder.rglob('*.py'))
    return sorted(name.as_posix() for name in names if '_base_' not in name.parts)


def config_path(name: str) -> Path:
    """Path of a config that ships with the package.

    Args:
        name: relative to ``configs/``, with or without ``.py``: ``'lvis/eva_cascade'``.

    Returns:
        Absolute path of the file.

    Raises:
        ValueError: no such config; the message lists near names, or all of them.
    """
    folder = resource_dir('configs')
    stem = name.removesuffix('.py')
    path = (folder / f'{stem}.py').resolve()
    if path.is_file() and path.is_relative_to(folder.resolve()):
        return path
    available = list_configs()
    near = difflib.get_close_matches(stem, available, n=5, cutoff=0.5)
    hint = f'near: {", ".join(near)}' if near else f'available: {", ".join(available)}'
    raise ValueError(f'no config named {name!r} in {folder}; {hint}')


def get_config(name: str) -> Config:
    """Load a config that ships with the package, from a checkout or an installed wheel.

    Args:
        name: as in :func:`config_path`.

    Returns:
        ``mmengine.config.Config``.

    Raises:
        ValueError: no such config.
        ImportError: mmengine is missing or incompatible.
    """
    from eva_mm import compat

    path = config_path(name)
    compat.require('mmengine')
    compat.prepare()
    from mmengine.config import Config

    return Config.fromfile(str(path))
