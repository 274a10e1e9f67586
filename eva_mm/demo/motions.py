"""Writes clips whose class is a motion: no single frame tells it, however long one looks.

In each frame of each class the object's place is uniform on a picture whose borders are joined, its
size follows one distribution and its angle is uniform; shapes, colours and backgrounds have nothing
to do with the class. Place, size or angle then runs through its range at an even speed, one way or
the other.
"""

import math
import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from eva_mm.demo.data_folder import DataFolder, check_seed, check_size, write_bytes
from eva_mm.demo.plan import SPLITS
from eva_mm.demo.shapes import OUTLINES

# Raise when the same arguments give other files than before.
GENERATOR_VERSION = 1
# Keeps the clips apart from the pictures of the other kinds of data sets with the same seed.
_STREAM = 3
_FRAMES = 32
_FRAMES_PER_SECOND = 16
_RADII = (0.14, 0.38)  # of the picture's side; an object's radius runs through them and starts anew
_RANGES = (0.35, 0.65)  # how much of its range a clip shows
_SHAPES = ('triangle', 'square', 'star', 'heart', 'crescent', 'cross')
_SHIFT = 4  # fractional bits of OpenCV's coordinates
_LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'


class Motion(NamedTuple):
    """Share of its range that each quantity passes in a unit of time."""

    x: float = 0.0
    y: float = 0.0
    size: float = 0.0


# In their sorted order, which is that of the labels; names as folders of Kinetics have them.
MOTIONS = {
    'growing': Motion(size=1.0),
    'moving down': Motion(y=1.0),
    'moving left': Motion(x=-1.0),
    'moving right': Motion(x=1.0),
    'moving up': Motion(y=-1.0),
    'shrinking': Motion(size=-1.0),
}


def generate_kinetics(
    out: str | os.PathLike,
    train_per_class: int = 240,
    val_per_class: int = 40,
    size: int | tuple[int, int] = 64,
    seed: int = 0,
) -> Path:
    """Generates a small data set of clips in the layout of Kinetics.

    Writes ``{train,val}/<class>/<id>_000000_000002.mp4`` with eleven characters as id, as of
    YouTube; the lists ``train.txt`` and ``val.txt``, a line ``path label`` per clip; and
    ``classes.txt`` with the names in the order of the labels. The same arguments give the same
    clips. A complete set made with the same arguments is left alone; a half-written or different
    one is made anew.

    Args:
        out: Folder of the data set.
        train_per_class: Training clips of each class.
        val_per_class: Validation clips of each class.
        size: Side of a frame, or (height, width), in pixels.
        seed: Any non-negative integer.

    Returns:
        The folder.

    Raises:
        ValueError: No clips, frames too small or of odd sides, or a negative seed.
        FileExistsError: ``out`` holds data this function did not write.
        OSError: OpenCV cannot write videos here.
    """
    size = check_size(size)
    if any(side % 2 for side in size):
        raise ValueError(f'size is {size}, expected even sides, as videos have them')
    counts = {'train': train_per_class, 'val': val_per_class}
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f'{split}_per_class is {count}, expected at least 1')
    arguments = {
        'kind': 'kinetics', 'version': GENERATOR_VERSION, **counts, 'size': list(size),
        'seed': check_seed(seed),
    }  # fmt: skip
    folder = DataFolder(out, SPLITS, ('train.txt', 'val.txt', 'classes.txt'))
    if folder.is_complete(arguments):
        return folder.root
    folder.claim()
    for split, count in counts.items():
        lines = []
        for label, name in enumerate(MOTIONS):
            paths = _write_class(folder.root, split, name, count, size, seed)
            lines += [f'{path} {label}\n' for path in paths]
        write_bytes(folder.root / f'{split}.txt', ''.join(lines).encode())
    write_bytes(folder.root / 'classes.txt', ''.join(f'{name}\n' for name in MOTIONS).encode())
    folder.finish(arguments)
    return folder.root


def _write_class(
    root: Path, split: str, name: str, count: int, size: tuple[int, int], seed: int
) -> list[str]:
    """Clips of a class; their paths below the root."""
    (root / split / name).mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        # By split, class and number, so that more clips leave the first ones as they are.
        place = (SPLITS.index(split), list(MOTIONS).index(name), number)
        rng = np.random.default_rng(np.random.SeedSequence((seed, _STREAM, *place)))
        identity = ''.join(rng.choice(list(_LETTERS), 11))
        path = f'{split}/{name}/{identity}_000000_{_FRAMES // _FRAMES_PER_SECOND:06d}.mp4'
        write_video(root / path, draw_motion(MOTIONS[name], size, rng))
        paths.append(path)
    return paths


def draw_motion(motion: Motion, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A clip: (T, H, W, 3) uint8, BGR.

    Args:
        motion: What runs through its range, and which way.
        size: Height and width in pixels.
        rng: Draws everything else, in the same order for every motion.
    """
    start = rng.random(3)  # of x, y and size
    angle, ranges = 2 * math.pi * rng.random(), rng.uniform(*_RANGES)
    outline = OUTLINES[_SHAPES[rng.integers(len(_SHAPES))]]
    colour = _colour(rng)
    background = _background(size, rng)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    outline = outline @ turn
    frames = []
    for time in np.arange(_FRAMES) / _FRAMES * ranges:
        x, y, phase = (start + time * np.array(motion)) % 1
        radius = min(size) * _RADII[0] * (_RADII[1] / _RADII[0]) ** phase
        centre = np.array([x * size[1], y * size[0]])
        frames.append(_draw(background, centre + radius * outline, colour))
    return np.stack(frames)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """A bright one, BGR."""
    pixel = np.array([[[rng.integers(180), rng.integers(60, 256), 255]]], np.uint8)
    return tuple(int(value) for value in cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0])


def _background(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Dark grey: whatever told one clip from another would be learnt by heart before motions."""
    return np.full((*size, 3), rng.integers(20, 60), np.uint8)


def _draw(background: np.ndarray, points: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The picture with an outline on it; what leaves at one border comes in at the other."""
    height, width = background.shape[:2]
    frame = background.copy()
    for dx in (-width, 0, width):
        for dy in (-height, 0, height):
            moved = np.rint((points + (dx, dy)) * 2**_SHIFT).astype(np.int32)
            cv2.fillPoly(frame, [moved], colour, cv2.LINE_AA, _SHIFT)
    return frame


def write_video(path: Path, frames: np.ndarray) -> None:
    """Writes (T, H, W, 3) uint8 BGR frames as MP4, whole or not at all.

    Raises:
        OSError: OpenCV cannot write videos here.
    """
    # OpenCV tells the container by the suffix.
    temporary = path.with_name(f'.{path.stem}.tmp.mp4')
    code = cv2.VideoWriter_fourcc(*'mp4v')
    writer = cv2.VideoWriter(str(temporary), code, _FRAMES_PER_SECOND, frames.shape[2:0:-1])
    if not writer.isOpened():
        raise OSError(f'{path}: OpenCV cannot write videos here')
    for frame in frames:
        writer.write(frame)
    writer.release()
    os.replace(temporary, path)
