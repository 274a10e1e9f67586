"""Lists of videos from folders, cleaned as the published ones were.

Source: EVA-01/video/README.md and EVA-01/video/notebooks, https://github.com/baaivision/EVA: of the
training videos, duplicates by their YouTube id, videos that stand in a validation set, and videos
that cannot be decoded are left out.
"""

import csv
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import decord
from rich.console import Console
from rich.progress import track

from eva_mm.engine.inference import VIDEO_SUFFIXES
from eva_mm.engine.saving import write_whole
from eva_mm.errors import InputError, MissingFileError, UsageError

from .classes import CLASSES_FILE, class_names_of, read_classes

# How Kinetics' files are called: the id with the seconds it is cut at, in some copies the id alone.
_KINETICS_NAME = re.compile(r'([\w-]{11})_\d{6}_\d{6}', re.ASCII)
_BARE_ID = re.compile(r'[\w-]{11}', re.ASCII)
_LABEL = re.compile(r'[ \t]+\d+$')

DUPLICATE = 'there twice'
OTHER_CLASS = 'there twice, in two classes'
LEAK = 'in an excluded set'
BROKEN = 'cannot be decoded'


class Video(NamedTuple):
    """A video file: its path, its class by the folder that it lies in, its identity."""

    path: str
    name: str
    identity: str


class LeftOut(NamedTuple):
    """A video that is not in a list, and why."""

    path: str
    reason: str
    detail: str


def identity_of(path: str, youtube_ids: bool = False) -> str | None:
    """YouTube id of a file named as Kinetics' are, None for any other name.

    Args:
        path: of the file.
        youtube_ids: whether a name of eleven characters is an id; ``video_00001.mp4`` is none.

    >>> identity_of('train/archery/-5NN5hdIwTc_000038_000048.mp4')
    '-5NN5hdIwTc'
    """
    name = os.path.splitext(os.path.basename(path))[0]
    if match := _KINETICS_NAME.fullmatch(name):
        return match[1]
    return name if youtube_ids and _BARE_ID.fullmatch(name) else None


def find_videos(root: str | os.PathLike, youtube_ids: bool = False) -> list[Video]:
    """Videos of a folder with a folder per class, in the order of their paths.

    A video that is not named as those of Kinetics is known by its path, and so is nothing's
    duplicate. Folders are searched at any depth; what begins with a dot is left out.

    Args:
        root: the folder.
        youtube_ids: see :func:`identity_of`.

    Raises:
        MissingFileError: no such folder.
        InputError: videos outside of class folders, a name with a line break, or no video at all.
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        what = 'is a file, not a folder' if os.path.exists(root) else 'not found'
        raise MissingFileError(f'folder of class folders {what}: {root}')
    videos = []
    for path in sorted(_files_below(root)):
        name, separator, _ = os.path.relpath(path, root).partition(os.sep)
        if not separator:
            raise InputError(
                f'{path} lies outside of the class folders: expected {root}/CLASS/VIDEO'
            )
        if '\n' in path or '\r' in path:
            raise InputError(f'file name with a line break: {path!r}')
        identity = identity_of(path, youtube_ids) or os.path.realpath(path)
        videos.append(Video(path, name, identity))
    if not videos:
        raise InputError(f'no video below {root}: expected files ending in {_endings()}')
    return videos


def _files_below(root: str) -> Iterator[str]:
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = (name for name in below if not name.startswith('.'))
        for name in files:
            if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith('.'):
                yield os.path.join(folder, name)


def _endings() -> str:
    return ' '.join(VIDEO_SUFFIXES)


def excluded_ids(source: str | os.PathLike, youtube_ids: bool = False) -> set[str]:
    """Identities of a set whose videos are not to be trained on.

    Args:
        source: a folder of class folders; a table with a column ``youtube_id`` (``.csv``, as
            Kinetics is published); or a text file with a path, with or without a label, or an id
            per line.
        youtube_ids: see :func:`identity_of`.

    Raises:
        MissingFileError, InputError: it is not there, or nothing in it is such an id.
    """
    path = Path(source)
    if path.is_dir():
        return {video.identity for video in find_videos(path, youtube_ids)}
    if not path.is_file():
        raise MissingFileError(f'set to exclude not found: {path}')
    try:
        with path.open(encoding='utf-8', newline='') as file:
            if path.suffix == '.csv':
                return _ids_of_table(file, path)
            names = [_LABEL.sub('', line.strip()) for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is not text in UTF-8: {error}') from error
    if not names:
        raise InputError(f'{path}: no video in it')
    # Files of another naming are known by their path, seen from the list's folder.
    return {
        # What is no file's name can be an id alone.
        identity_of(name, youtube_ids or bool(_BARE_ID.fullmatch(name)))
        or os.path.realpath(path.parent / name)
        for name in names
    }


def _ids_of_table(file: Iterable[str], path: Path) -> set[str]:
    table = csv.DictReader(file)
    if 'youtube_id' not in (table.fieldnames or ()):
        raise InputError(
            f'{path}: expected a column youtube_id, found {", ".join(table.fieldnames or ())}'
        )
    found = {identity for row in table if (identity := (row['youtube_id'] or '').strip())}
    if not found:
        raise InputError(f'{path}: no video in it')
    return found


def clean(
    videos: Iterable[Video], excluded: set[str] = frozenset(), keep_duplicates: bool = False
) -> tuple[list[Video], list[LeftOut]]:
    """Leave duplicates and leaks out; of duplicates the first one stays.

    Args:
        videos: in the order in which they are preferred.
        excluded: identities, from :func:`excluded_ids`.
        keep_duplicates: whether several files of one id stay.
    """
    kept, left, first = [], [], {}
    for video in videos:
        before = first.get(video.identity)
        if video.identity in excluded:
            left.append(LeftOut(video.path, LEAK, video.identity))
        elif before is not None and not keep_duplicates:
            reason = DUPLICATE if before.name == video.name else OTHER_CLASS
            left.append(LeftOut(video.path, reason, before.path))
        else:
            first.setdefault(video.identity, video)
            kept.append(video)
    return kept, left


def why_unreadable(path: str) -> str | None:
    """Decode the first, a middle and the last frame; what is wrong with them, or None."""
    try:
        with open(path, 'rb') as file:
            reader = decord.VideoReader(file, num_threads=1)
            total = len(reader)
            if total < 1:
                return 'no frames'
            reader.get_batch([0, total // 2, total - 1]).asnumpy()
    except Exception as error:  # decord raises anything on damaged files
        text = ' '.join(str(error).strip().splitlines()[-1:]) or type(error).__name__
        return re.sub(r'^.*?Check failed: ', '', text)[:200]
    return None


def drop_unreadable(videos: Sequence[Video], workers: int = 1) -> tuple[list[Video], list[LeftOut]]:
    """Leave out what cannot be decoded; a bar on the standard error tells how far it is.

    Args:
        videos: to be tried.
        workers: processes.

    Raises:
        InputError: a process died at a video, as decoders may; it is among those named.
    """
    kept, left = [], []
    pool = ProcessPoolExecutor(workers)
    try:
        reasons = pool.map(why_unreadable, [video.path for video in videos], chunksize=8)
        console = Console(stderr=True)
        pairs = zip(videos, reasons)
        for video, reason in track(pairs, 'decoding', total=len(videos), console=console):
            if reason is None:
                kept.append(video)
            else:
                left.append(LeftOut(video.path, BROKEN, reason))
    except BrokenProcessPool as error:
        near = len(kept) + len(left)
        paths = [video.path for video in videos[near : near + 8 * workers + 8]]
        raise InputError(
            f'decord brought its process down at one of {", ".join(paths)}: find it by '
            f'--workers 1, move it away, or go without decoding (--no-decode)'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return kept, left


def list_classes(roots: Sequence[str], given: str | None, beside: Path) -> list[str]:
    """Names in the order of the labels: of a file or folder given, of one beside, of the roots.

    Args:
        roots: folders of class folders.
        given: folder or text file (:func:`~eva_mm.video.classes.read_classes`), or None.
        beside: ``classes.txt`` in the folder of the list, which an earlier list may have left, and
            whose order stays.

    Raises:
        InputError: what is given has other classes than the file beside, or another order.
    """
    names = None if given is None else read_classes(given)
    if beside.is_file():
        before = list(class_names_of(str(beside), ''))
        if names not in (None, before):
            _tell_difference(names, str(given), before, beside)
        return before
    return names or sorted({name for root in roots for name in read_classes(root)})


def _tell_difference(names: list[str], given: str, before: list[str], beside: Path) -> None:
    pairs = enumerate(itertools.zip_longest(names, before))
    place, (found, expected) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    raise InputError(
        f'--classes {given} and {beside}, by which lists beside it are labelled, have other '
        f'classes, or another order: class {place} is {found!r} in the former, {expected!r} in the '
        f'latter ({len(names)} and {len(before)} in all); write the list to another folder'
    )


class ListReport(NamedTuple):
    """What :func:`write_list` did.

    Attributes:
        number: videos in the list.
        classes: all names, in the order of the labels.
        empty: names without a video.
        left: videos that were left out.
    """

    number: int
    classes: list[str]
    empty: list[str]
    left: list[LeftOut]

    def text(self, out: str) -> str:
        """A summary, with an example of each reason."""
        lines = [f'{out}: {self.number:,} videos of {len(self.classes)} classes']
        examples = {video.reason: video for video in reversed(self.left)}
        for reason, count in counts_of(self.left).items():
            video = examples[reason]
            lines.append(f'left out: {count:,} {reason}, as {video.path} ({video.detail})')
        if self.empty:
            lines.append(f'no video of {len(self.empty)} classes: {", ".join(self.empty[:5])}')
        return '\n'.join(lines)


def write_list(
    roots: Sequence[str],
    out: str,
    *,
    root: str | None = None,
    classes: str | None = None,
    exclude: Sequence[str] = (),
    keep_duplicates: bool = False,
    decode: bool = True,
    workers: int = 1,
    youtube_ids: bool = False,
) -> ListReport:
    """Write a list of ``path label`` lines, with ``classes.txt`` and what was left out beside it.

    A ``classes.txt`` that is there stays as it is: the labels of other lists are by it.

    ``<list>_left_out.tsv`` has a line per video: reason, path, and what it was told by (the file
    that it is a duplicate of, the id, the decoder's words).

    Args:
        roots: folders with a folder per class; several make one data set.
        out: text file.
        root: folder that paths are relative to, the config's ``data_prefix``; that of ``out`` by
            default.
        classes: folder of class folders or text file with the names; by default ``classes.txt``
            beside the list if there is one, else the folders of the roots.
        exclude: sets whose videos are left out; see :func:`excluded_ids`.
        keep_duplicates: see :func:`clean`.
        decode: whether videos are tried.
        workers: processes that do.
        youtube_ids: see :func:`identity_of`.

    Raises:
        InputError: a class that is not among the names, ``classes`` that differ from those beside
            the list, or nothing is left; nothing is written.
    """
    if workers < 1:
        raise UsageError(f'--workers takes a number of processes, 1 or more, not {workers}')
    folder = Path(out).parent
    names_file = folder / CLASSES_FILE
    names = list_classes(roots, classes, names_file)
    videos = [video for path in roots for video in find_videos(path, youtube_ids)]
    _refuse_unknown(videos, names, classes or str(names_file))
    excluded = {i for source in exclude for i in excluded_ids(source, youtube_ids)}
    kept, left = clean(videos, excluded, keep_duplicates)
    if decode:
        kept, broken = drop_unreadable(kept, workers)
        left += broken
    if not kept:
        counts = ', '.join(f'{count} {reason}' for reason, count in counts_of(left).items())
        raise InputError(f'{out}: none of the {len(videos)} videos is left ({counts})')
    labels = {name: label for label, name in enumerate(names)}
    start = root or folder
    lines = [f'{os.path.relpath(v.path, start)} {labels[v.name]}' for v in kept]
    aside = folder / f'{Path(out).stem}_left_out.tsv'
    _write_lines(str(aside), ['\t'.join((x.reason, x.path, x.detail)) for x in left])
    if not names_file.exists():
        _write_lines(str(names_file), names)
    _write_lines(out, lines)
    empty = sorted(set(names) - {video.name for video in kept})
    return ListReport(len(kept), names, empty, left)


def _refuse_unknown(videos: Sequence[Video], names: Sequence[str], source: str) -> None:
    known = set(names)
    for video in videos:
        if video.name not in known:
            raise InputError(
                f'{video.path}: {video.name!r} is not among the {len(names)} classes of {source}'
            )


def counts_of(left: Iterable[LeftOut]) -> Counter[str]:
    """How many were left out for each reason."""
    return Counter(video.reason for video in left)


def _write_lines(path: str, lines: Iterable[str]) -> None:
    text = ''.join(f'{line}\n' for line in lines)
    write_whole(path, lambda file: file.write(os.fsencode(text)))
