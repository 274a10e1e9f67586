"""The folder of a generated data set: made whole, known when complete, never over foreign data."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from eva_mm.demo.scenes import MIN_SIDE

STAMP = 'demo_stamp.json'
# Marks the folder as ours from the first moment, so that nothing else is ever overwritten.
_MARKER = '.eva_mm_demo'
_JPEG_QUALITY = 95


class DataFolder:
    """Folder of one data set.

    Args:
        root: of the data set.
        parts: sub-folders that hold its files, at any depth.
        files: its files outside of them.
    """

    def __init__(
        self, root: str | os.PathLike, parts: Iterable[str], files: Iterable[str] = ()
    ) -> None:
        self.root = Path(root)
        self.parts = tuple(parts)
        self.files = tuple(files)

    def is_complete(self, arguments: dict[str, Any]) -> bool:
        """Whether the stamp names these arguments and every file it lists has its size."""
        try:
            stamp = json.loads((self.root / STAMP).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        if stamp.get('arguments') != arguments:
            return False
        found = self._sizes()
        return all(found.get(name) == size for name, size in stamp['bytes'].items())

    def claim(self) -> None:
        """Empties a data set of ours, or starts one.

        Raises:
            FileExistsError: the folder holds data that no generator wrote.
        """
        files = self._files()
        if files and not (self.root / _MARKER).exists():
            raise FileExistsError(
                f'{self.root} holds files this generator did not write (such as {files[0].name}); '
                'give another folder'
            )
        for part in self.parts:
            (self.root / part).mkdir(parents=True, exist_ok=True)
        (self.root / _MARKER).touch()
        (self.root / STAMP).unlink(missing_ok=True)
        for file in files:
            file.unlink()

    def finish(self, arguments: dict[str, Any]) -> None:
        """Notes that the set is complete."""
        write_json(self.root / STAMP, {'arguments': arguments, 'bytes': self._sizes()})

    def _files(self) -> list[Path]:
        inside = (path for part in self.parts for path in (self.root / part).rglob('*'))
        outside = (self.root / name for name in self.files)
        return sorted(path for path in (*inside, *outside) if path.is_file())

    def _sizes(self) -> dict[str, int]:
        return {p.relative_to(self.root).as_posix(): p.stat().st_size for p in self._files()}


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a scene's size in pixels; raises ValueError for one that cannot be."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < MIN_SIDE:
        raise ValueError(f'size is {size}, expected sides of at least {MIN_SIDE} pixels')
    if max(height, width) > 3 * min(height, width):
        raise ValueError(f'size is {size}, expected sides that differ at most threefold')
    return height, width


def check_seed(seed: int) -> int:
    """The seed; raises ValueError if it is negative."""
    if seed < 0:
        raise ValueError(f'seed is {seed}, expected a non-negative integer')
    return seed


def write_image(path: Path, image: np.ndarray) -> None:
    """Writes a (H, W, 3) uint8 BGR image as JPEG, whole or not at all."""
    encoded, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not encoded:
        raise OSError(f'could not encode {path}')
    write_bytes(path, data.tobytes())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    write_bytes(path, json.dumps(content).encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name, then renames it."""
    temporary = path.with_name(f'{path.name}.tmp')
    temporary.write_bytes(data)
    os.replace(temporary, path)
