"""Writes landscapes with a class for each pixel, in the layout and the numbers of ADE20K."""

import os
from pathlib import Path

import cv2
import numpy as np

from eva_mm.demo.data_folder import DataFolder, check_seed, check_size, write_bytes, write_image

# Raise when the same arguments give other files than before.
GENERATOR_VERSION = 1
# Numbers in the label maps: ADE20K's own (SceneParse150), 0 for what is none of its classes.
CLASSES = {
    'sky': 3, 'tree': 5, 'road': 7, 'grass': 10, 'mountain': 17, 'car': 21, 'water': 22,
    'house': 26, 'rock': 35, 'sand': 47, 'boat': 77, 'tent': 115,
}  # fmt: skip
OTHER = 0
SPLITS = {'train': 'training', 'val': 'validation'}
SUPERSAMPLE = 4
# Keeps the scenes apart from those of the other kinds of data sets with the same seed.
_STREAM = 5
# Hue, saturation, value in OpenCV's 8-bit ranges, and how far each may be off.
_COLOURS = {
    'sky': ((106, 95, 235), (6, 25, 12)),
    'cloud': ((0, 5, 246), (0, 4, 6)),
    'mountain': ((125, 60, 125), (8, 15, 15)),
    'grass': ((45, 150, 175), (5, 20, 15)),
    'sand': ((22, 105, 222), (3, 15, 12)),
    'water': ((103, 190, 140), (5, 20, 15)),
    'road': ((110, 12, 80), (10, 6, 10)),
    'rock': ((15, 25, 150), (6, 8, 12)),
    'crown': ((58, 200, 90), (6, 20, 12)),
    'trunk': ((12, 150, 85), (3, 20, 10)),
    'wall': ((8, 90, 215), (6, 30, 15)),
    'roof': ((4, 190, 130), (4, 25, 15)),
    'window': ((105, 60, 90), (5, 15, 15)),
    'hull': ((10, 180, 110), (4, 20, 15)),
    'sail': ((25, 15, 245), (5, 8, 6)),
    'tyre': ((0, 10, 30), (0, 5, 8)),
    'tent': ((14, 220, 240), (4, 20, 10)),
    'opening': ((10, 180, 90), (4, 20, 10)),
}
_CAR_HUES = (0, 28, 118, 150)


def generate_ade20k(
    out: str | os.PathLike,
    num_train: int = 300,
    num_val: int = 60,
    size: int | tuple[int, int] = (128, 160),
    seed: int = 0,
) -> Path:
    """Generates a small segmentation data set of 12 of ADE20K's classes.

    Writes ``images/{training,validation}/ADE_{train,val}_00000001.jpg`` ... and, below
    ``annotations``, label maps of one channel under the same names, ``.png``. The numbers in them
    are ADE20K's; clouds are none of its classes and get 0. The same arguments give the same bytes.
    A complete set made with the same arguments is left alone; a half-written or different one is
    made anew.

    Args:
        out: Folder of the data set.
        num_train: Training images.
        num_val: Validation images.
        size: Image side, or (height, width), in pixels.
        seed: Any non-negative integer.

    Returns:
        The folder.

    Raises:
        ValueError: No images, images too small, or a negative seed.
        FileExistsError: ``out`` holds data this function did not write.
    """
    size, counts = check_size(size), {'train': num_train, 'val': num_val}
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f'num_{split} is {count}, expected at least 1')
    arguments = {
        'kind': 'ade20k', 'version': GENERATOR_VERSION, **counts, 'size': list(size),
        'seed': check_seed(seed),
    }  # fmt: skip
    parts = [f'{kind}/{name}' for kind in ('images', 'annotations') for name in SPLITS.values()]
    folder = DataFolder(out, parts)
    if folder.is_complete(arguments):
        return folder.root
    folder.claim()
    for split, count in counts.items():
        for number in range(count):
            image, label = draw_landscape(size, seed, split, number)
            name = f'{SPLITS[split]}/ADE_{split}_{number + 1:08d}'
            write_image(folder.root / 'images' / f'{name}.jpg', image)
            encoded = cv2.imencode('.png', label)[1]
            write_bytes(folder.root / 'annotations' / f'{name}.png', encoded.tobytes())
    folder.finish(arguments)
    return folder.root


def draw_landscape(
    size: tuple[int, int], seed: int, split: str, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene; the same arguments always give the same pixels.

    Args:
        size: (height, width) in pixels.
        seed: Seed of the data set.
        split: ``'train'`` or ``'val'``.
        number: Of the scene within its split.

    Returns:
        (H, W, 3) uint8 BGR, and (H, W) uint8 with the numbers of ``CLASSES`` or ``OTHER``.
    """
    key = np.random.SeedSequence((seed, _STREAM, list(SPLITS).index(split), number))
    scene = _Canvas(size, np.random.default_rng(key))
    horizon = scene.draw(0.35, 0.5)
    _paint_sky(scene, horizon)
    shore = _paint_ground(scene, horizon)
    _paint_things(scene, shore)
    return scene.finish()


class _Canvas:
    """Picture and labels on a grid ``SUPERSAMPLE`` times finer; places are shares of the sides."""

    def __init__(self, size: tuple[int, int], rng: np.random.Generator) -> None:
        self.rng = rng
        self.size = size
        height, width = (side * SUPERSAMPLE for side in size)
        self._image = np.zeros((height, width, 3), np.float32)
        self._label = np.zeros((height, width), np.uint8)
        self.aspect = width / height

    def draw(self, low: float, high: float) -> float:
        """A random number."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """A random choice."""
        return bool(self.rng.random() < probability)

    def colour(self, name: str) -> np.ndarray:
        """(3,) BGR of a material, a little off."""
        middle, spread = _COLOURS[name]
        return self.bgr(np.array(middle) + self.rng.uniform(-1, 1, 3) * spread)

    @staticmethod
    def bgr(hsv: np.ndarray) -> np.ndarray:
        """(3,) BGR of an OpenCV 8-bit HSV colour; hue wraps around."""
        pixel = np.array([[[hsv[0] % 180, *np.clip(hsv[1:], 0, 255)]]])
        return cv2.cvtColor(np.rint(pixel).astype(np.uint8), cv2.COLOR_HSV2BGR)[0, 0].astype(float)

    def polygon(self, points, colour: np.ndarray, number: int) -> None:
        """Fill a polygon of (x, y), both in shares of the height."""
        scaled = np.asarray(points) * self._label.shape[0]
        self._fill(np.rint(scaled * 16).astype(np.int32), colour, number)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour, number: int) -> None:
        """Fill an ellipse, in shares of the height."""
        turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([x + rx * np.cos(turn), y + ry * np.sin(turn)], axis=1)
        self.polygon(points, colour, number)

    def _fill(self, points: np.ndarray, colour: np.ndarray, number: int) -> None:
        cv2.fillPoly(self._image, [points], tuple(colour.tolist()), shift=4)
        cv2.fillPoly(self._label, [points], number, shift=4)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Picture with texture and grain, and labels, at their size."""
        height, width = self.size
        image = cv2.resize(self._image, (width, height), interpolation=cv2.INTER_AREA)
        for cells, strength in ((24, 7.0), (5, 5.0)):
            grid = self.rng.standard_normal((height // cells + 3, width // cells + 3))
            noise = cv2.resize(grid, None, fx=cells, fy=cells, interpolation=cv2.INTER_CUBIC)
            image += strength * noise[:height, :width, None]
        image += self.rng.normal(0, 4, (height, width, 1))
        middle = SUPERSAMPLE // 2
        label = self._label[middle::SUPERSAMPLE, middle::SUPERSAMPLE]
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), np.ascontiguousarray(label)


def _box(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _paint_sky(scene: _Canvas, horizon: float) -> None:
    scene.polygon(_box(0, 0, scene.aspect, 1), scene.colour('sky'), CLASSES['sky'])
    for _ in range(int(scene.rng.integers(0, 3))):
        x, y, r = scene.draw(0, scene.aspect), scene.draw(0.05, 0.2), scene.draw(0.04, 0.08)
        for offset in (-1.2, 0, 1.2):
            scene.ellipse(x + offset * r, y, 1.3 * r, 0.7 * r, scene.colour('cloud'), OTHER)
    for _ in range(int(scene.rng.integers(0, 3))):
        x, half = scene.draw(0, scene.aspect), scene.draw(0.25, 0.45)
        top = horizon - scene.draw(0.12, 0.28)
        peak = [(x - half, horizon + 0.02), (x, top), (x + half, horizon + 0.02)]
        scene.polygon(peak, scene.colour('mountain'), CLASSES['mountain'])


def _paint_ground(scene: _Canvas, horizon: float) -> float:
    """Ground with or without water and road; returns where solid ground begins."""
    kind = 'grass' if scene.chance(0.55) else 'sand'
    scene.polygon(_box(0, horizon, scene.aspect, 1), scene.colour(kind), CLASSES[kind])
    shore = horizon
    if scene.chance(0.55):
        shore = horizon + scene.draw(0.15, 0.25)
        tilt = scene.draw(-0.04, 0.04)
        water = [(0, horizon), (scene.aspect, horizon), (scene.aspect, shore + tilt)]
        scene.polygon([*water, (0, shore - tilt)], scene.colour('water'), CLASSES['water'])
        if scene.chance(0.8):
            _paint_boat(scene, scene.draw(0.15, scene.aspect - 0.15), horizon + 0.1)
        shore += 0.05
    if scene.chance(0.55):
        _paint_road(scene, shore)
    return shore


def _paint_boat(scene: _Canvas, x: float, water: float) -> None:
    size, number = scene.draw(0.09, 0.13), CLASSES['boat']
    hull = [(x - size, water - 0.4 * size), (x + size, water - 0.4 * size)]
    hull += [(x + 0.6 * size, water + 0.2 * size), (x - 0.6 * size, water + 0.2 * size)]
    scene.polygon(hull, scene.colour('hull'), number)
    sail = [(x, water - 1.9 * size), (x + 0.8 * size, water - 0.5 * size), (x, water - 0.5 * size)]
    scene.polygon(sail, scene.colour('sail'), number)


def _paint_road(scene: _Canvas, shore: float) -> None:
    """A road along the picture, with a car on it or not."""
    top = max(shore + 0.06, scene.draw(0.68, 0.82))
    bottom = top + scene.draw(0.11, 0.15)
    scene.polygon(_box(0, top, scene.aspect, bottom), scene.colour('road'), CLASSES['road'])
    if not scene.chance(0.85):
        return
    x, size = scene.draw(0.15, scene.aspect - 0.15), scene.draw(0.1, 0.13)
    hue = float(scene.rng.choice(_CAR_HUES)) + scene.draw(-3, 3)
    paint, number = scene.bgr(np.array([hue, 215, 200])), CLASSES['car']
    floor = (top + bottom) / 2
    scene.polygon(_box(x - size, floor - 0.7 * size, x + size, floor), paint, number)
    cabin = [(x - 0.6 * size, floor - 0.7 * size), (x - 0.4 * size, floor - 1.2 * size)]
    cabin += [(x + 0.4 * size, floor - 1.2 * size), (x + 0.6 * size, floor - 0.7 * size)]
    scene.polygon(cabin, scene.colour('window'), number)
    for side in (-0.55, 0.55):
        r = 0.22 * size
        scene.ellipse(x + side * size, floor, r, r, scene.colour('tyre'), number)


def _paint_things(scene: _Canvas, shore: float) -> None:
    """Things on the ground, the far ones first."""
    painters = [_paint_house] * int(scene.rng.integers(0, 2))
    painters += [_paint_tree] * int(scene.rng.integers(1, 4))
    painters += [_paint_rock] * int(scene.rng.integers(0, 3))
    painters += [_paint_tent] * int(scene.rng.integers(0, 2))
    scene.rng.shuffle(painters)
    floors = np.sort(scene.rng.uniform(min(shore + 0.03, 0.9), 0.97, len(painters)))
    for paint, floor in zip(painters, floors.tolist()):
        paint(scene, scene.draw(0.08, scene.aspect - 0.08), floor)


def _paint_house(scene: _Canvas, x: float, floor: float) -> None:
    half, height, number = scene.draw(0.12, 0.17), scene.draw(0.14, 0.2), CLASSES['house']
    scene.polygon(_box(x - half, floor - height, x + half, floor), scene.colour('wall'), number)
    roof = [(x - 1.15 * half, floor - height), (x, floor - 1.75 * height)]
    scene.polygon([*roof, (x + 1.15 * half, floor - height)], scene.colour('roof'), number)
    for side in (-0.5, 0.5):
        left, top = x + side * half - 0.2 * half, floor - 0.75 * height
        box = _box(left, top, left + 0.4 * half, top + 0.3 * height)
        scene.polygon(box, scene.colour('window'), number)


def _paint_tree(scene: _Canvas, x: float, floor: float) -> None:
    size, number = scene.draw(0.09, 0.14), CLASSES['tree']
    trunk = _box(x - 0.18 * size, floor - size, x + 0.18 * size, floor)
    scene.polygon(trunk, scene.colour('trunk'), number)
    if scene.chance(0.5):
        scene.ellipse(x, floor - 1.7 * size, size, 1.1 * size, scene.colour('crown'), number)
    else:
        crown = [
            (x - size, floor - 0.6 * size),
            (x, floor - 3 * size),
            (x + size, floor - 0.6 * size),
        ]
        scene.polygon(crown, scene.colour('crown'), number)


def _paint_rock(scene: _Canvas, x: float, floor: float) -> None:
    size = scene.draw(0.06, 0.1)
    turn = np.linspace(0, 2 * np.pi, 9, endpoint=False) + scene.draw(0, 1)
    radius = size * scene.rng.uniform(0.75, 1.1, len(turn))
    points = np.stack([x + radius * np.cos(turn), floor - 0.7 * radius * np.sin(turn)], axis=1)
    scene.polygon(points, scene.colour('rock'), CLASSES['rock'])


def _paint_tent(scene: _Canvas, x: float, floor: float) -> None:
    half, height, number = scene.draw(0.09, 0.14), scene.draw(0.12, 0.18), CLASSES['tent']
    sides = [(x - half, floor), (x, floor - height), (x + half, floor)]
    scene.polygon(sides, scene.colour('tent'), number)
    opening = [(x - 0.3 * half, floor), (x, floor - 0.6 * height), (x + 0.3 * half, floor)]
    scene.polygon(opening, scene.colour('opening'), number)
