"""Images from folders or file lists, for tasks that need no host package.

A list of tens of millions of paths is one buffer and one array (:class:`PathList`): it takes the
bytes of its names, not a Python object each, and workers that are forked share it.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.logging import print_log
from PIL import Image
from torch.utils.data import Dataset

from eva_mm.engine.exact_data import PositionSeeded
from eva_mm.engine.saving import write_whole
from eva_mm.engine.unreadable import BrokenImageError, MissingImageError, ReplacesUnreadable
from eva_mm.errors import InputError, MissingFileError, UnreadableFileError

# Those of torchvision's ImageFolder; upper case counts as well.
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')
_SUFFIXES = tuple(os.fsencode(suffix) for suffix in IMAGE_SUFFIXES)
_LABEL = re.compile(rb'[\t ]+(-?\d+)$', re.MULTILINE)
# An image's name, and behind it what is no label as expected, such as `,1` or ` 1.0`.
_ODD_LABEL = re.compile(
    rb'\.(?:' + b'|'.join(s[1:] for s in _SUFFIXES) + rb')[\t ,;:|]+([^\t ,;:|\n]+)$',
    re.MULTILINE | re.IGNORECASE,
)
_TRAILING = re.compile(rb'[ \t\r]+$', re.MULTILINE)
_TOLD_EVERY = 1_000_000
_MAX_TRIES = 100  # substitutes for one unreadable image


class PathList(Sequence[str]):
    """Image files below a root, with or without a label each.

    Args:
        root: folder that the paths are relative to; absolute paths stand by themselves.
        names: the paths as file names of the operating system, each followed by a newline.
        labels: int64, (N,); None without labels.

    Raises:
        InputError: the number of labels is another than that of the paths.
    """

    def __init__(self, root: str, names: bytes, labels: np.ndarray | None = None) -> None:
        self.root = root
        self.names = names
        self.labels = labels
        self._ends = np.flatnonzero(np.frombuffer(names, np.uint8) == ord('\n'))
        if labels is not None and len(labels) != len(self):
            raise InputError(f'{len(labels)} labels for {len(self)} images of {root}')

    def __len__(self) -> int:
        """Number of images."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """Path of an image, root included."""
        return os.path.join(self.root, self.relative(index))

    def relative(self, index: int) -> str:
        """Path of an image below the root."""
        if not -len(self) <= index < len(self):
            raise IndexError(f'image {index} of {len(self)}')
        index = int(index) % len(self)
        begin = int(self._ends[index - 1]) + 1 if index else 0
        return os.fsdecode(self.names[begin : int(self._ends[index])])

    def digest(self) -> str:
        """SHA-256 of the relative paths in order, as hexadecimal digits; labels don't matter."""
        return hashlib.sha256(self.names).hexdigest()


def list_images(root: str | os.PathLike) -> PathList:
    """List the images below a folder.

    Folders are searched at any depth, links followed; what begins with a dot is left out. Within
    each folder, names are in the order of their bytes, so the same tree gives the same list
    everywhere.

    Args:
        root: folder.

    Raises:
        MissingFileError: it is not there.
        UnreadableFileError: it, or a folder below, cannot be listed.
        InputError: it holds no image, or a name contains a line break.
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        what = 'is a file, not a folder' if os.path.exists(root) else 'not found'
        raise MissingFileError(f'image folder {what}: {root} (check data_root)')
    names = bytearray()
    for count, name in enumerate(_walk(os.fsencode(root), b'', frozenset()), 1):
        if b'\n' in name:
            raise InputError(f'file name with a line break below {root}: {os.fsdecode(name)!r}')
        names += name + b'\n'
        if count % _TOLD_EVERY == 0:
            print_log(f'{root}: {count:,} images so far; a file list saves the search', 'current')
    if not names:
        raise InputError(f'no image below {root}: expected files ending in {_endings()}')
    return PathList(root, bytes(names))


def _walk(folder: bytes, prefix: bytes, above: frozenset[tuple[int, int]]) -> Iterator[bytes]:
    """Images below a folder, each with the prefix; ``above`` stops links that lead in a circle."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise UnreadableFileError(f'cannot list folder {os.fsdecode(folder)}: {error}') from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith(b'.'):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, prefix + entry.name + b'/', above | {here})
        elif entry.name.lower().endswith(_SUFFIXES):
            # Links that lead nowhere are kept, so that they are told of when they are read.
            yield prefix + entry.name


def _endings() -> str:
    return ', '.join(IMAGE_SUFFIXES)


def read_file_list(path: str | os.PathLike, root: str | os.PathLike) -> PathList:
    """Read a list of images: one path per line, all or none followed by an integer label.

    Path and label are separated by tabs or spaces; the path itself may contain spaces. Blank
    lines are left out.

    Args:
        path: text file.
        root: folder that its paths are relative to.

    Raises:
        MissingFileError, UnreadableFileError: the list is not there or cannot be read.
        InputError: it is empty, no text, some lines have labels and others not, or a label is no
            whole number of 64 bits at most; names the first such line.
    """
    path = os.fspath(path)
    try:
        with open(path, 'rb') as file:
            data = file.read()
    except FileNotFoundError as error:
        raise MissingFileError(f'file list not found: {path} (check ann_file)') from error
    except OSError as error:
        raise UnreadableFileError(f'cannot read file list {path}: {error}') from error
    if b'\0' in data:
        raise InputError(f'file list {path} is not text: expected one path per line')
    data = _tidy(data)
    if not data:
        raise InputError(f'file list is empty: {path}')
    names, labels = _split_labels(data, path)
    _refuse_odd_labels(names, path)
    return PathList(os.fspath(root), names, labels)


def _tidy(data: bytes) -> bytes:
    """Lines without white space at their ends, none blank, the last one ended."""
    data = _TRAILING.sub(b'', data.removeprefix(b'\xef\xbb\xbf'))
    data = re.sub(rb'\n{2,}', b'\n', data.strip(b'\n'))
    return data + b'\n' if data else data


def _split_labels(data: bytes, path: str) -> tuple[bytes, np.ndarray | None]:
    """Paths and labels of a tidied list."""
    lines = data.count(b'\n')
    try:
        labels = np.fromiter((int(match[1]) for match in _LABEL.finditer(data)), np.int64)
    except OverflowError as error:
        raise _too_large(data, path) from error
    if not len(labels):
        return data, None
    if len(labels) != lines:
        labelled = _LABEL.search(data, 0, data.index(b'\n')) is not None
        rows = enumerate(data.splitlines(), 1)
        row, text = next(r for r in rows if (_LABEL.search(r[1]) is not None) != labelled)
        raise InputError(
            f'file list {path}: {len(labels)} of {lines} lines have a label, expected all or '
            f'none; the first line has {"one" if labelled else "none"}, line {row} '
            f'(blank ones not counted) has {"none" if labelled else "one"}: '
            f'{os.fsdecode(text)[:80]!r}'
        )
    return _LABEL.sub(b'', data), labels


def _too_large(data: bytes, path: str) -> InputError:
    limits = np.iinfo(np.int64)
    labels = (int(match[1]) for match in _LABEL.finditer(data))
    row, label = next(
        (row, x) for row, x in enumerate(labels, 1) if not limits.min <= x <= limits.max
    )
    return InputError(
        f'file list {path}: label {label} in line {row} (blank ones and those without a label not '
        f'counted) is too large'
    )


def _refuse_odd_labels(names: bytes, path: str) -> None:
    """What looks like a label in another form would else be taken for a part of the path."""
    for match in _ODD_LABEL.finditer(names):
        if not match[1].lower().endswith(_SUFFIXES):
            row = names.count(b'\n', 0, match.start()) + 1
            line = names[names.rfind(b'\n', 0, match.start()) + 1 : match.end()]
            raise InputError(
                f'file list {path}, line {row} (blank ones not counted): expected a path, or a '
                f'path, a space or tab and a whole number, found {os.fsdecode(line)[:80]!r}'
            )


def write_file_list(images: PathList, path: str | os.PathLike) -> None:
    """Write a list that :func:`read_file_list` reads, so that a large folder is searched once."""
    if images.labels is None:
        write_whole(os.fspath(path), lambda file: file.write(images.names))
        return
    rows = zip(images.names.splitlines(), images.labels.tolist())
    write_whole(os.fspath(path), lambda file: file.writelines(b'%s\t%d\n' % row for row in rows))


def open_rgb(path: str) -> Image.Image:
    """Open an image as torchvision's ImageFolder does: PIL, RGB, EXIF orientation left unapplied.

    Raises:
        MissingImageError, BrokenImageError: it is not there, or no (whole) picture.
    """
    try:
        with warnings.catch_warnings(), open(path, 'rb') as file:
            warnings.simplefilter('ignore')  # of damaged metadata: the pixels are what matters
            return Image.open(file).convert('RGB')
    except FileNotFoundError as error:
        raise MissingImageError(f'image not found: {path}') from error
    except Exception as error:  # PIL's readers raise anything on damaged data
        raise BrokenImageError(
            f'cannot read image {path}: {type(error).__name__}: {error}'
        ) from error


class Indexed(Dataset):
    """A data set that prepares samples by their index."""

    def __getitem__(self, index: int) -> Any:
        return self.prepare_data(index)


class ImageDataset(PositionSeeded, ReplacesUnreadable, Indexed):
    """Images of one or several folders, each opened as RGB and passed through a pipeline.

    The pipeline starts with ``dict(image=<PIL image, RGB>, img_path=<str>)`` and ``label=<int>``
    where the file list has labels. Augmentations are seeded by the sample's position
    (:class:`PositionSeeded`). EXIF orientation is left unapplied, as published.

    Args:
        data_root: folder, or several whose images are joined in this order.
        ann_file: file list (:func:`read_file_list`), one for each root; a relative one lies below
            its root. Without it, all images below a root (:func:`list_images`) are taken.
        pipeline: transforms, as configs or callables.
        skip_unreadable: train with another, randomly chosen image in place of one that is missing
            or broken, instead of stopping; each is logged and counted. The choice depends on the
            sample's position alone.
        test_mode: stop at unreadable images in any case, as a missing one would change a metric.
        metainfo: told by the data set's ``metainfo``, such as ``classes``.

    Raises:
        InputError: with all its kinds; see :func:`list_images` and :func:`read_file_list`.
    """

    def __init__(
        self,
        data_root: str | Sequence[str],
        ann_file: str | Sequence[str] = '',
        pipeline: Sequence[Any] = (),
        skip_unreadable: bool = False,
        test_mode: bool = False,
        metainfo: Mapping | None = None,
    ) -> None:
        super().__init__(skip_unreadable=skip_unreadable)
        self.test_mode = test_mode
        self._metainfo = dict(metainfo or {})
        self.lists = self.load_lists(data_root, ann_file)
        # Index of the first image of each list, then the number of all.
        self._begins = np.cumsum([0, *map(len, self.lists)])
        self.pipeline = Compose(pipeline)

    def load_lists(
        self, data_root: str | Sequence[str], ann_file: str | Sequence[str]
    ) -> list[PathList]:
        """Find the images: one list per root. Sub-classes may check or label them here."""
        roots = [data_root] if isinstance(data_root, str) else list(data_root)
        files = [ann_file] if isinstance(ann_file, str) else list(ann_file)
        if not roots:
            raise InputError('data_root names no folder')
        if not any(files):
            return [list_images(root) for root in roots]
        if len(files) != len(roots):
            raise InputError(
                f'ann_file names {len(files)} file lists for {len(roots)} folders of data_root; '
                f'expected one for each'
            )
        return [
            read_file_list(os.path.join(root, file), root) if file else list_images(root)
            for root, file in zip(roots, files)
        ]

    @property
    def metainfo(self) -> dict:
        """Facts about the data set, such as ``classes``."""
        return dict(self._metainfo)

    def __len__(self) -> int:
        """Number of images."""
        return int(self._begins[-1])

    def get_data_info(self, idx: int) -> dict:
        """``img_path`` of an image and, where there are labels, its ``label``."""
        if not 0 <= idx < len(self):
            raise IndexError(f'image {idx} of {len(self)}')
        place = int(np.searchsorted(self._begins, idx, side='right')) - 1
        images, inside = self.lists[place], int(idx - self._begins[place])
        info = dict(img_path=images[inside])
        if images.labels is not None:
            info['label'] = int(images.labels[inside])
        return info

    def digest(self) -> str:
        """SHA-256 that changes with any relative path or the order of images."""
        parts = ''.join(images.digest() for images in self.lists)
        return hashlib.sha256(parts.encode()).hexdigest()

    def prepare_data(self, idx: int) -> Any:
        """Load a sample, or another one in its place (see ``skip_unreadable``).

        Raises:
            MissingImageError, BrokenImageError: it cannot be read.
            UnreadableFileError: nor can any of the substitutes.
        """
        if not self.skip_unreadable or self.test_mode:
            return self._prepare(idx)
        return self.load_first_readable(
            self._candidates(idx), self._prepare, 'another image', self._source()
        )

    def _source(self) -> str:
        roots = ', '.join(images.root for images in self.lists)
        return roots if len(self) <= _MAX_TRIES else f'a random draw from {roots}'

    def _candidates(self, idx: int) -> Iterator[int]:
        yield idx
        # All of a small data set, so that "none can be read" is then the whole truth.
        for other in random.sample(range(len(self)), min(len(self), _MAX_TRIES)):
            if other != idx:
                yield other

    def _prepare(self, idx: int) -> Any:
        info = self.get_data_info(idx)
        return self.pipeline(dict(info, image=open_rgb(info['img_path'])))
