"""Lists of videos whose broken files are named, replaced and counted."""

from typing import Any

import decord
import numpy as np
from mmaction.datasets import VideoDataset
from mmaction.registry import DATASETS

from eva_mm.engine.exact_data import PositionSeeded
from eva_mm.engine.unreadable import BrokenImageError, MissingImageError, ReplacesUnreadable
from eva_mm.errors import InputError, MissingFileError

_TRIES = 10  # videos in a row that may be broken


def _is_unreadable(error: BaseException) -> bool:
    """Whether decord raised this for a file that is no video, or half of one."""
    return isinstance(error, decord.DECORDError) or str(error).startswith('Error reading')


@DATASETS.register_module()
class EVAVideoDataset(PositionSeeded, ReplacesUnreadable, VideoDataset):
    """Videos of a list, one ``path label`` per line.

    Augmentations are seeded by the sample's position (:class:`PositionSeeded`). A video that
    cannot be decoded stops the run and is named; with ``skip_unreadable=True`` a random other one
    replaces it, which is logged and counted (``UnreadableImagesHook``).

    Args:
        ann_file: the list. A path may hold blanks: the label is what follows the last one.
        **kwargs: of mmaction2's ``VideoDataset`` (``data_prefix=dict(video=...)``,
            ``pipeline``, ``test_mode``), and ``skip_unreadable``.

    Raises:
        MissingFileError: the list is not there.
        InputError: a line holds no label.
    """

    def load_data_list(self) -> list[dict]:
        """A dictionary of ``filename`` and ``label`` per line."""
        try:
            with open(self.ann_file, encoding='utf-8') as file:
                lines = file.read().splitlines()
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
        """A video through the pipeline, or the first readable one after it.

        Raises:
            UnreadableFileError: it cannot be decoded and is not replaced, or ten in a row cannot.
        """
        if not self.skip_unreadable:
            return self._load(idx)
        others = (int(np.random.randint(len(self))) for _ in range(_TRIES - 1))
        candidates = (i for group in ((idx,), others) for i in group)
        return self.load_first_readable(candidates, self._load, 'another video', self.ann_file)

    def _load(self, idx: int) -> Any:
        try:
            return super().prepare_data(idx)
        except FileNotFoundError as error:
            name = self.get_data_info(idx)['filename']
            raise MissingImageError(f'video not found: {name}') from error
        except (decord.DECORDError, RuntimeError) as error:
            if not _is_unreadable(error):
                raise
            name = self.get_data_info(idx)['filename']
            reason = str(error).strip().splitlines()[-1][:200]
            raise BrokenImageError(f'video cannot be decoded: {name} ({reason})') from error
