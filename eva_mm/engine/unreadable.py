"""What data sets do about images that cannot be read: stop, or replace and count them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from mmengine.logging import print_log

from eva_mm.errors import UnreadableFileError

_MAX_WORKERS = 256  # of a DataLoader; more share their counts
# The machine is to blame, not the image: the next one would not be read either.
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class BrokenImageError(UnreadableFileError):
    """An image that is no picture, or half of one."""


class MissingImageError(UnreadableFileError, FileNotFoundError):
    """An image that is not there."""


class ReplacesUnreadable:
    """Mixin of data sets that may load another sample in place of an unreadable one.

    It stands before the data set in the bases. ``UnreadableImagesHook`` reports the count.

    Args:
        skip_unreadable: replace them instead of stopping.
    """

    def __init__(self, *args: Any, skip_unreadable: bool = False, **kwargs: Any) -> None:
        self.skip_unreadable = skip_unreadable
        # Shared with the workers of a DataLoader, so that the main process sees their counts; a
        # place for each, since adding to one number is no single step.
        self._replaced = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()
        super().__init__(*args, **kwargs)

    @property
    def num_replaced(self) -> int:
        """How often another image stood in for an unreadable one, in this process's workers."""
        return int(self._replaced.sum())

    def load_first_readable(
        self, candidates: Iterable[int], load: Callable[[int], Any], next_one: str, source: str
    ) -> Any:
        """Load the first of several samples that can be read; count and log those before it.

        Args:
            candidates: indices in the order in which they are tried.
            load: given an index; raises :class:`UnreadableFileError` for an unreadable one.
            next_one: what a candidate is to the one before it, for the log ('the next image').
            source: where the images come from, for the error.

        Raises:
            UnreadableFileError: none of them can be read; tells how many there were, and why
                the last one cannot. Or the machine is out of memory or of open files.
        """
        tried, last = 0, None
        for candidate in candidates:
            try:
                return load(candidate)
            except UnreadableFileError as error:
                if _of_the_machine(error):
                    raise
                worker = torch.utils.data.get_worker_info()
                self._replaced[worker.id % _MAX_WORKERS if worker else 0] += 1
                text = printable(f'{error}; {next_one} replaces it')
                print_log(text, 'current', logging.WARNING)
                tried, last = tried + 1, error
        raise UnreadableFileError(
            printable(f'none of the {tried} images of {source} can be read; the last: {last}')
        )


def printable(text: str) -> str:
    r"""Text with bytes of file names that are no UTF-8 as ``\udcff``: log files refuse them."""
    return text.encode(errors='backslashreplace').decode()


def _of_the_machine(error: UnreadableFileError) -> bool:
    cause = error.__cause__
    return isinstance(cause, MemoryError) or getattr(cause, 'errno', None) in _OF_THE_MACHINE
