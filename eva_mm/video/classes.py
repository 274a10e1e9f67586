"""Class lists of Kinetics, their union, and where each data set's classes stand in it.

Source: EVA-01/video/README.md and EVA-01/video/models/clip_mae.py: classes of Kinetics-722 are the
sorted union of those of Kinetics-400, 600 and 700, and a class is known by its folder's name.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from eva_mm.engine.saving import whole_file
from eva_mm.errors import InputError, MissingFileError


def read_classes(source: str | os.PathLike) -> list[str]:
    """Class names in their sorted order, which is that of the labels.

    Args:
        source: a folder with one folder of videos per class, or a text file with a name per line.

    Raises:
        MissingFileError: neither is there.
        InputError: no name, or one name twice.
    """
    path = Path(source)
    if path.is_dir():
        names = [entry.name for entry in os.scandir(path) if entry.is_dir()]
        names = [name for name in names if not name.startswith('.')]
    elif path.is_file():
        lines = path.read_text(encoding='utf-8').splitlines()
        names = [line.strip() for line in lines if line.strip()]
    else:
        raise MissingFileError(f'class list not found: {path}')
    if not names:
        raise InputError(f'class list {path}: no class in it')
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f'class list {path}: {twice!r} stands there twice')
    return sorted(names)


def union_of(class_lists: Iterable[Iterable[str]]) -> list[str]:
    """Sorted union of class lists: Kinetics-722 from Kinetics-400, 600 and 700."""
    return sorted({name for names in class_lists for name in names})


def rows_in(union: Sequence[str], classes: Iterable[str]) -> list[int]:
    """Place of each class, in sorted order, in a union.

    Raises:
        InputError: a class is not in it.
    """
    places = {name: place for place, name in enumerate(union)}
    if missing := sorted(set(classes) - places.keys()):
        raise InputError(
            f'{len(missing)} classes are not among the {len(places)} of the union, first: '
            f'{missing[0]!r}'
        )
    return [places[name] for name in sorted(classes)]


def write_rows(rows: Sequence[int], path: str | os.PathLike) -> None:
    """Write rows as ``EVAVideoHead(class_rows=...)`` reads them.

    Args:
        rows: a number per class.
        path: ending in ``.npy``, or a text file.
    """
    path = os.fspath(path)
    with whole_file(path) as file:
        if path.endswith('.npy'):
            np.save(file, np.array(rows, dtype=np.int64))
        else:
            file.write(''.join(f'{row}\n' for row in rows).encode())
