"""Labelled images: one folder per class, file lists, or tar files."""

import difflib
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.registry import DATASETS
from PIL import Image
from timm.data import ImageNetInfo
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from eva_mm.engine.exact_data import PositionSeeded
from eva_mm.engine.image_data import ImageDataset, Indexed, PathList
from eva_mm.engine.unreadable import BrokenImageError, ReplacesUnreadable
from eva_mm.errors import InputError, MissingFileError, UnreadableFileError

# Class lists that timm ships, by the name that a config gives: WordNet ids, sorted.
CLASS_LISTS = ('imagenet-1k', 'imagenet-22k')
_SHOWN = 5
# Without class names, labels above are taken for a mistake: ImageNet-21K has 21,841 classes.
_MOST_CLASSES = 100_000
_HOLDOUT = {'part', 'fraction', 'seed'}
# Paths that begin with no class folder, or do not tell which: empty, '.' and '..' in between.
_ROUNDABOUT = re.compile(rb'(?:^|/)\.{0,2}/', re.MULTILINE)


def read_classes(classes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Class names in the order of the outputs.

    Args:
        classes: a name in :data:`CLASS_LISTS`, a text file with a name per line, the names
            themselves, or None (asks the data).

    Raises:
        MissingFileError: neither a known list nor a file.
        InputError: a file that is no text, an empty list, or a name twice.
    """
    if classes is None:
        return None
    source = 'classes'
    if isinstance(classes, str):
        source = classes
        classes = _named_classes(classes)
    names = tuple(str(name) for name in classes)
    if not names or len(set(names)) < len(names):
        twice = sorted(name for name, count in Counter(names).items() if count > 1)[:_SHOWN]
        raise InputError(f'{source}: expected class names, each once; found {twice or "none"}')
    return names


def _named_classes(name: str) -> list[str]:
    if name in CLASS_LISTS:
        return ImageNetInfo(name).label_names()
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, CLASS_LISTS, n=1)
        raise MissingFileError(
            f'classes={name!r} is neither a file nor one of {", ".join(CLASS_LISTS)}'
            + (f'; {near[0]!r}?' if near else '')
        )
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except OSError as error:
        raise UnreadableFileError(f'cannot read classes={name}: {error}') from error
    except UnicodeDecodeError as error:
        raise InputError(f'classes={name} is no text: expected a class name per line') from error
    return [line.strip() for line in lines if line.strip()]


def check_classes(
    found: Collection[str], expected: Sequence[str], where: str, require_all: bool = True
) -> None:
    """Compare the classes of a data set with those a model is trained for.

    Raises:
        InputError: names what is missing and what is there besides.
    """
    found = set(found)
    missing = [name for name in expected if name not in found] if require_all else []
    extra = sorted(found - set(expected))
    problems = [
        f'{what} {len(names)} ({", ".join(names[:_SHOWN])}{", ..." if len(names) > _SHOWN else ""})'
        for what, names in (('missing:', missing), ('not among them:', extra))
        if names
    ]
    if problems:
        raise InputError(
            f'{where} should hold {"" if require_all else "some of "}{len(expected)} classes, but '
            f'holds {len(found)}; {"; ".join(problems)}'
        )


@DATASETS.register_module()
class ClassificationImages(ImageDataset):
    """Images with a class each: ``ROOT/<class>/...``, or a file list with labels.

    In folders, classes are the folders directly below the root, in sorted order unless
    ``classes`` gives another; images may lie deeper. A file list (see
    :func:`eva_mm.engine.image_data.read_file_list`) has a class number in each line, or paths
    through a class folder directly below the root. Of several lists, all have labels or none.

    Args:
        data_root, ann_file, pipeline, skip_unreadable, test_mode: see
            :class:`~eva_mm.engine.image_data.ImageDataset`.
        classes: see :func:`read_classes`; None takes the folders that are there, or the numbers
            up to the largest in the file list.
        require_all: whether each of ``classes`` has to be there.
        holdout: ``dict(part='train' or 'val', fraction=..., seed=...)`` takes one part of the
            images, at least one of each class for validation. Who is where depends on paths
            below the root and the seed alone, so that both parts need no list.

    Raises:
        InputError: images outside of class folders, class folders missing, empty or unknown,
            labels out of range or on some of the lists alone, an image with two labels, or listed
            twice where a part is held out; and those of
            :class:`~eva_mm.engine.image_data.ImageDataset`.
    """

    def __init__(
        self,
        data_root: str | Sequence[str],
        ann_file: str | Sequence[str] = '',
        pipeline: Sequence[Any] = (),
        classes: str | Sequence[str] | None = None,
        require_all: bool = True,
        skip_unreadable: bool = False,
        test_mode: bool = False,
        metainfo: Mapping | None = None,
        holdout: Mapping[str, Any] | None = None,
    ) -> None:
        self._expected = read_classes(classes)
        self._require_all = require_all
        self._holdout = _check_holdout(holdout)
        super().__init__(data_root, ann_file, pipeline, skip_unreadable, test_mode, metainfo)
        self._metainfo['classes'] = self._classes

    def load_lists(
        self, data_root: str | Sequence[str], ann_file: str | Sequence[str]
    ) -> list[PathList]:
        """Find the images and the class of each."""
        lists = super().load_lists(data_root, ann_file)
        labelled = [images.labels is not None for images in lists]
        if any(labelled):
            _check_all_labelled(lists, labelled, ann_file)
            self._check_labels(lists, ann_file)
            for images in lists:
                _check_labelled_once(images)
        else:
            self._label_by_folders(lists, data_root, ann_file)
        if self._holdout is not None:
            for images in lists:
                _check_listed_once(images)
            lists = [take_part(images, **self._holdout) for images in lists]
        return lists

    def _label_by_folders(
        self,
        lists: Sequence[PathList],
        data_root: str | Sequence[str],
        ann_file: str | Sequence[str],
    ) -> None:
        folders = [_class_folders(images) for images in lists]
        found = sorted(set().union(*(names for names, _ in folders)))
        self._check_empty(data_root, ann_file, found)
        self._classes = self._expected or tuple(found)
        where = ' and '.join(images.root for images in lists)
        check_classes(found, self._classes, where, self._require_all)
        number = {name: index for index, name in enumerate(self._classes)}
        for images, (names, counts) in zip(lists, folders):
            images.labels = np.repeat([number[name] for name in names], counts)

    def _check_labels(self, lists: Sequence[PathList], ann_file: str | Sequence[str]) -> None:
        limit = len(self._expected) if self._expected else _MOST_CLASSES
        for images in lists:
            wrong = np.flatnonzero((images.labels < 0) | (images.labels >= limit))
            if len(wrong):
                first = int(wrong[0])
                raise InputError(
                    f'file list {ann_file}: {images.relative(first)}, line {first + 1} (blank ones '
                    f'not counted), has label {images.labels[first]}, expected 0 to {limit - 1} '
                    f'({len(wrong)} labels are out of range)'
                )
        highest = max(int(images.labels.max()) for images in lists)
        self._classes = self._expected or tuple(str(label) for label in range(highest + 1))

    def _check_empty(
        self, data_root: str | Sequence[str], ann_file: Any, found: Collection[str]
    ) -> None:
        """A class folder without images is a mistake: its name would move every label."""
        if ann_file:
            return
        for root in [data_root] if isinstance(data_root, str) else data_root:
            with os.scandir(root) as scan:
                names = {e.name for e in scan if e.is_dir() and not e.name.startswith('.')}
            empty = sorted(names - set(found))
            if empty:
                raise InputError(
                    f'{root}: {len(empty)} class folders hold no image, as {empty[0]}: fill or '
                    f'remove them'
                )


def _check_holdout(holdout: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if holdout is not None and not {'part', 'fraction'} <= set(holdout) <= _HOLDOUT:
        raise InputError(
            f'holdout takes part, fraction and, if wanted, seed, but has {", ".join(holdout)}'
        )
    return holdout


def _check_all_labelled(
    lists: Sequence[PathList], labelled: Sequence[bool], ann_file: str | Sequence[str]
) -> None:
    if all(labelled):
        return
    files = [ann_file] if isinstance(ann_file, str) else list(ann_file)
    named = [f'{file} of {i.root}' if file else f'folder {i.root}' for file, i in zip(files, lists)]
    raise InputError(
        f'{named[labelled.index(True)]} has labels, {named[labelled.index(False)]} has none: '
        f'expected all or none; class numbers and class folders do not go together'
    )


def _repeated(images: PathList) -> dict[bytes, list[int]]:
    """Paths that are listed several times, and where; takes 8 bytes per path, unless there are."""
    lines = (line[:-1] for line in io.BytesIO(images.names))
    hashes = np.fromiter(map(hash, lines), np.int64, len(images))
    values, counts = np.unique(hashes, return_counts=True)
    suspects = np.flatnonzero(np.isin(hashes, values[counts > 1])) if (counts > 1).any() else []
    places: dict[bytes, list[int]] = {}
    for index in suspects:
        places.setdefault(os.fsencode(images.relative(index)), []).append(int(index))
    return {name: found for name, found in places.items() if len(found) > 1}


def _check_labelled_once(images: PathList) -> None:
    for name, places in _repeated(images).items():
        labels = sorted(set(images.labels[places].tolist()))
        if len(labels) > 1:
            raise InputError(
                f'{os.fsdecode(name)} of {images.root} has labels {labels[0]} and {labels[1]}, in '
                f'lines {places[0] + 1} and {places[1] + 1} or further on (blank ones not '
                f'counted); expected one'
            )


def _check_listed_once(images: PathList) -> None:
    if repeated := _repeated(images):
        name, places = next(iter(repeated.items()))
        raise InputError(
            f'{os.fsdecode(name)} of {images.root} is listed {len(places)} times, so that it could '
            f'be in both parts of holdout; expected once'
        )


def _below_root(images: PathList) -> bytes:
    """The paths as they lead on from the root, however they are written."""
    if not _ROUNDABOUT.search(images.names):
        return images.names
    root = os.fsencode(os.path.abspath(images.root))
    paths = (os.path.normpath(os.path.join(root, line)) for line in images.names.splitlines())
    return b''.join(os.path.relpath(path, root) + b'\n' for path in paths)


def _class_folders(images: PathList) -> tuple[list[str], list[int]]:
    """First folder of each path, as runs: names and lengths."""
    names: list[str] = []
    counts: list[int] = []
    data, begin, last = _below_root(images), 0, None
    while begin < len(data):
        end = data.index(b'\n', begin)
        slash = data.find(b'/', begin, end)
        if slash < 0 or data[begin:slash] == b'..':
            raise InputError(
                f'{images.root}: image {os.fsdecode(data[begin:end])} lies in no class folder and '
                f'has no label; expected {images.root}/CLASS/IMAGE, or a file list with labels '
                f'(ann_file)'
            )
        name = data[begin:slash]
        if name == last:
            counts[-1] += 1
        else:
            names.append(os.fsdecode(name))
            counts.append(1)
            last = name
        begin = end + 1
    return names, counts


def take_part(images: PathList, part: str, fraction: float, seed: int = 0) -> PathList:
    """Training or validation part of a labelled list; see :class:`ClassificationImages`.

    Raises:
        InputError: an unknown part, a fraction outside (0, 1), or nothing left to train on.
    """
    if part not in ('train', 'val') or not 0 < fraction < 1:
        raise InputError(
            f"holdout takes part 'train' or 'val' and a fraction between 0 and 1, got {part!r} "
            f'and {fraction}'
        )
    lines = images.names.splitlines()
    keys = [hashlib.sha256(b'%d:%s' % (seed, line)).digest() for line in lines]
    held = np.zeros(len(lines), bool)
    for label in np.unique(images.labels):
        members = np.flatnonzero(images.labels == label)
        if len(members) > 1:  # a class with one image is trained on
            count = max(1, round(fraction * len(members)))
            held[sorted(members, key=lambda i: keys[i])[: min(count, len(members) - 1)]] = True
    chosen = np.flatnonzero(held if part == 'val' else ~held)
    if not len(chosen):
        raise InputError(f'{images.root}: no class has a second image to hold out for validation')
    names = b''.join(lines[i] + b'\n' for i in chosen)
    return PathList(images.root, names, images.labels[chosen])


@DATASETS.register_module()
class TarImages(PositionSeeded, ReplacesUnreadable, Indexed):
    """Images inside tar files: one file per class, or shards with a folder per class inside.

    Read by timm's reader, which scans the files at the start (it keeps what it found beside
    files of more than 10 GB) and takes about 1 KB of memory per image.

    Args:
        data_root: a tar file, or a folder of them.
        pipeline: transforms, as of :class:`ClassificationImages`.
        classes, require_all: see :class:`ClassificationImages`.
        skip_unreadable: train with the next image in place of a broken one.
        test_mode: stop at broken images in any case.

    Raises:
        MissingFileError: no such file or folder, or no tar file in it.
        InputError: no image, or classes as of :class:`ClassificationImages`.
    """

    def __init__(
        self,
        data_root: str,
        pipeline: Sequence[Any] = (),
        classes: str | Sequence[str] | None = None,
        require_all: bool = True,
        skip_unreadable: bool = False,
        test_mode: bool = False,
    ) -> None:
        super().__init__(skip_unreadable=skip_unreadable)
        self.data_root, self.test_mode = data_root, test_mode
        self.pipeline = Compose(pipeline)
        # Handles are not kept: forked workers would share their position in the file.
        self.reader = _open_reader(data_root)
        found = list(self.reader.class_name_to_idx)
        names = read_classes(classes) or tuple(sorted(found))
        check_classes(found, names, data_root, require_all)
        number = {name: index for index, name in enumerate(names)}
        renumber = np.array([number[self.reader.class_idx_to_name[i]] for i in range(len(found))])
        self._labels = renumber[self.reader.targets]
        self.metainfo = dict(classes=names)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.reader)

    def get_data_info(self, idx: int) -> dict:
        """``img_path`` (the tar file, then the path inside) and ``label`` of an image."""
        info, tar, _ = self.reader.samples[idx]
        source = os.path.join(self.data_root, tar) if tar else self.data_root
        return dict(img_path=f'{source}!{info.name}', label=int(self._labels[idx]))

    def prepare_data(self, idx: int) -> Any:
        """Load a sample, or another one in its place (see ``skip_unreadable``)."""
        if not self.skip_unreadable or self.test_mode:
            return self._prepare(idx)
        following: Iterable[int] = ((idx + step) % len(self) for step in range(1, len(self)))
        candidates = (i for part in ([idx], following) for i in part)
        return self.load_first_readable(candidates, self._prepare, 'the next image', self.data_root)

    def _prepare(self, idx: int) -> Any:
        info = self.get_data_info(idx)
        try:
            with self.reader[int(idx)][0] as file:
                image = Image.open(file).convert('RGB')
        except Exception as error:  # PIL's readers raise anything on damaged data
            raise BrokenImageError(
                f'cannot read image {info["img_path"]}: {type(error).__name__}: {error}'
            ) from error
        return self.pipeline(dict(info, image=image))


def _open_reader(root: str) -> ReaderImageInTar:
    path = Path(root)
    if not path.exists():
        raise MissingFileError(f'tar file or folder not found: {root} (check data_root)')
    if path.is_dir() and not any(path.glob('*.tar')):
        raise MissingFileError(f'no tar file (*.tar) in {root}')
    try:
        return ReaderImageInTar(root, cache_tarfiles=False)
    except ValueError as error:  # unpacking nothing
        raise InputError(f'no image in the tar files of {root}: {error}') from error
    except Exception as error:
        raise InputError(f'cannot read the tar files of {root}: {error}') from error
