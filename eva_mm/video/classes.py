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

CLASSES_FILE = 'classes.txt'


def read_classes(source: str | os.PathLike) -> list[str]:
    """Class names in the order of the labels.

    Args:
        source: a folder with one folder of videos per class, whose names are sorted, or a text file
            with a name per line, whose order stays.

    Raises:
        MissingFileError: neither is there.
        InputError: no name, or one name twice; a file that is not UTF-8.
    """
    path = Path(source)
    if path.is_dir():
        names = [entry.name for entry in os.scandir(path) if entry.is_dir()]
        names = sorted(name for name in names if not name.startswith('.'))
    elif path.is_file():
        names = _names_in(path)
    else:
        raise MissingFileError(f'class list not found: {path}')
    if not names:
        raise InputError(f'class list {path}: no class in it')
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f'class list {path}: {twice!r} stands there twice')
    return names


def _names_in(path: str | os.PathLike) -> list[str]:
    try:
        with open(path, encoding='utf-8') as file:
            # A name may hold what only Python takes for an end of line (U+2028, say).
            return [line.strip() for line in file.read().split('\n') if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f'class list {path} is not text in UTF-8: {error}') from error


def class_names_of(classes: str | Sequence[str] | None, ann_file: str) -> tuple[str, ...]:
    """Names that a data set has; see :class:`~eva_mm.video.datasets.EVAVideoDataset`.

    Args:
        classes: names, or the text file with them; None for ``classes.txt`` beside the list.
        ann_file: the list.

    Returns:
        The names in the order of the labels; empty where there are none.

    Raises:
        MissingFileError, InputError: the file is not there, empty, or names a class twice.
    """
    if classes is not None and not isinstance(classes, str):
        return tuple(classes)
    if not classes and not ann_file:
        return ()
    path = classes or os.path.join(os.path.dirname(ann_file), CLASSES_FILE)
    if not os.path.isfile(path):
        if classes is None:
            return ()
        raise MissingFileError(f'class names not found: {path} (check classes)')
    names = tuple(_names_in(path))
    if not names or len(set(names)) != len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        found = 'none' if twice is None else f'{twice!r} twice'
        raise InputError(f'class names {path}: expected a name per line, found {found}')
    return names


def union_of(class_lists: Iterable[Iterable[str]]) -> list[str]:
    """Sorted union of class lists: Kinetics-722 from Kinetics-400, 600 and 700."""
    return sorted({name for names in class_lists for name in names})


def rows_in(union: Sequence[str], classes: Iterable[str]) -> list[int]:
    """Place of each class in a union, in the order of the classes.

    Raises:
        InputError: a class is not in it.
    """
    places = {name: place for place, name in enumerate(union)}
    classes = list(classes)
    if missing := sorted(set(classes) - places.keys()):
        raise InputError(
            f'{len(missing)} classes are not among the {len(places)} of the union, first: '
            f'{missing[0]!r}'
        )
    return [places[name] for name in classes]


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
