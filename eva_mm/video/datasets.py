"""Lists of videos whose broken files are named, replaced and counted."""

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

import decord
from mmaction.datasets import VideoDataset
from mmaction.registry import DATASETS

from eva_mm.engine.exact_data import PositionSeeded
from eva_mm.engine.unreadable import BrokenImageError, MissingImageError, ReplacesUnreadable
from eva_mm.errors import InputError, MissingFileError

from .classes import class_names_of, read_classes
from .lists import Video, find_videos

_TRIES = 10  # videos in a row that may be broken


def _is_unreadable(error: BaseException) -> bool:
    """Whether this was raised for a file that cannot be read, is no video, or half of one."""
    # decord's own errors, and what its Python part raises where there is no whole frame.
    of_decord = str(error).startswith(('Error reading', 'Invalid frame count'))
    return isinstance(error, (decord.DECORDError, OSError)) or of_decord


@DATASETS.register_module()
class EVAVideoDataset(PositionSeeded, ReplacesUnreadable, VideoDataset):
    """Videos of a list, one ``path label`` per line, or of a folder with a folder per class.

    Augmentations are seeded by the sample's position (:class:`PositionSeeded`). A video that
    cannot be decoded stops the run and is named; with ``skip_unreadable=True`` a random other one
    replaces it in training, which is logged and counted (``UnreadableImagesHook``).

    Args:
        ann_file: the list. A path may hold blanks: the label is what follows the last one. Empty
            for all videos below ``data_prefix['video']``, in whose class folders the names are.
        classes: names in the order of the labels, or the text file with one per line; by default
            ``classes.txt`` beside the list, where there is one. Told as ``metainfo['classes']``,
            and so kept in checkpoints.
        holdout: ``dict(part='train' or 'val', fraction=..., seed=...)`` takes one part of a
            folder's videos; see :func:`take_part`.
        **kwargs: of mmaction2's ``VideoDataset`` (``data_prefix=dict(video=...)``,
            ``pipeline``, ``test_mode``, ``num_classes``), and ``skip_unreadable``.

    Attributes:
        label_limit: the highest label plus one.

    Raises:
        MissingFileError: the list, or the file of names, is not there.
        InputError: a line holds no label, or one beyond the classes; a folder holds other classes;
            both a list and ``holdout`` are given.
    """

    def __init__(
        self,
        ann_file: str = '',
        *args: Any,
        classes: str | Sequence[str] | None = None,
        metainfo: dict | None = None,
        num_classes: int | None = None,
        data_root: str = '',
        holdout: dict | None = None,
        **kwargs: Any,
    ) -> None:
        self.holdout = holdout
        if ann_file and holdout:
            raise InputError(
                f'holdout splits the videos of a folder, but there is a list too, '
                f'ann_file={ann_file}: leave one of them out'
            )
        if ann_file:
            names = class_names_of(classes, os.path.join(data_root, ann_file))
        else:
            folder = os.path.join(data_root, (kwargs.get('data_prefix') or {}).get('video') or '')
            names = class_names_of(classes, '') or tuple(read_classes(folder))
        if names and num_classes not in (None, len(names)):
            raise InputError(f'num_classes is {num_classes}, but {len(names)} classes are named')
        super().__init__(
            ann_file,
            *args,
            metainfo={**(metainfo or {}), **({'classes': names} if names else {})},
            num_classes=len(names) if names else num_classes,
            data_root=data_root,
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """A dictionary of ``filename`` and ``label`` per video."""
        entries = self._read_list() if self.ann_file else self._read_folder()
        self.label_limit = 1 + max(entry['label'] for entry in entries)
        return entries

    def _read_folder(self) -> list[dict]:
        root, names = self.data_prefix['video'], self.metainfo['classes']
        videos = find_videos(root)
        if self.holdout:
            videos = take_part(videos, root, **self.holdout)
        labels = {name: label for label, name in enumerate(names)}
        for video in videos:
            if video.name not in labels:
                raise InputError(
                    f'{video.path}: {video.name!r} is not among the {len(names)} classes '
                    f'({", ".join(names[:5])} ...)'
                )
        return [dict(filename=video.path, label=labels[video.name]) for video in videos]

    def _read_list(self) -> list[dict]:
        try:
            # File names are bytes, and may hold what only Python takes for an end of line.
            with open(self.ann_file, encoding='utf-8', errors='surrogateescape') as file:
                lines = file.read().split('\n')
        except FileNotFoundError as error:
            raise MissingFileError(
                f'list of videos not found: {self.ann_file} (check data_root and ann_file)'
            ) from error
        entries = [
            self._parse(line, number) for number, line in enumerate(lines, start=1) if line.strip()
        ]
        if not entries:
            raise InputError(f'list of videos is empty: {self.ann_file}')
        return entries

    def _parse(self, line: str, number: int) -> dict:
        name, _, label = line.strip().rpartition(self.delimiter)
        if not name or not label.isdigit():
            raise InputError(
                f'{self.ann_file}, line {number}: expected "path{self.delimiter}label", found '
                f'{line[:80]!r}'
            )
        if self.num_classes is not None and int(label) >= self.num_classes:
            raise InputError(
                f'{self.ann_file}, line {number}: label {label}, expected one below '
                f'{self.num_classes}'
            )
        folder = self.data_prefix.get('video')
        return dict(filename=f'{folder.rstrip("/")}/{name}' if folder else name, label=int(label))

    def prepare_data(self, idx: int) -> Any:
        """A video through the pipeline, or a random other one in its place.

        Raises:
            UnreadableFileError: it cannot be decoded and is not replaced, or nor can ten others.
        """
        if not self.skip_unreadable or self.test_mode:  # a metric would be of other videos
            return self._load(idx)
        others = random.sample(range(len(self)), min(len(self), _TRIES))
        candidates = [idx, *(other for other in others if other != idx)]
        return self.load_first_readable(candidates, self._load, 'another video', self.ann_file)

    def _load(self, idx: int) -> Any:
        return load_video(self.pipeline, self.get_data_info(idx))


def load_video(pipeline: Callable[[dict], Any], info: dict) -> Any:
    """Pass a video through a pipeline.

    Args:
        pipeline: begins with decord's transforms.
        info: of the video, with ``filename``.

    Raises:
        UnreadableFileError: it is not there, or is no (whole) video.
    """
    name = info['filename']
    try:
        return pipeline(info)
    except FileNotFoundError as error:
        raise MissingImageError(f'video not found: {name}') from error
    except (decord.DECORDError, RuntimeError, OSError, AssertionError) as error:
        if not _is_unreadable(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
        raise BrokenImageError(f'video cannot be decoded: {name} ({reason})') from error


def take_part(
    videos: Sequence[Video], root: str, part: str, fraction: float, seed: int = 0
) -> list[Video]:
    """Videos to train on, or those held out: a share of each class, at least one of several.

    Who is where depends on seed and identity alone (the YouTube id, else the path below the root),
    so that parts of one video in a class stay together. A video in several classes is drawn in each
    of them, so that a class with one video always keeps it.

    Raises:
        InputError: another part or share; or no class has a second video.
    """
    if part not in ('train', 'val') or not 0 < fraction < 1:
        raise InputError(
            f"holdout takes part 'train' or 'val' and a fraction between 0 and 1, got {part!r} and "
            f'{fraction}'
        )
    classes: dict[str, set[str]] = {}
    for video in videos:
        classes.setdefault(video.name, set()).add(video.identity)
    held = set()
    for name, identities in classes.items():
        if len(identities) > 1:  # a class with one video is trained on
            count = min(max(1, round(fraction * len(identities))), len(identities) - 1)
            drawn = sorted(identities, key=lambda identity: _draw(identity, root, seed))[:count]
            held |= {(name, identity) for identity in drawn}
    chosen = [
        video for video in videos if ((video.name, video.identity) in held) == (part == 'val')
    ]
    if not chosen:
        raise InputError(f'{root}: no class has a second video to hold out for validation')
    return chosen


def _draw(identity: str, root: str, seed: int) -> str:
    if os.path.isabs(identity):
        identity = os.path.relpath(identity, os.path.realpath(root))
    return hashlib.sha256(f'{seed}:{identity}'.encode(errors='surrogateescape')).hexdigest()
