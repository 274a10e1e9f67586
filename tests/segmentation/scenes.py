"""Small pictures with label maps, in any layout."""

from pathlib import Path

import cv2
import numpy as np

COLOURS = np.random.default_rng(7).integers(0, 256, (256, 3), dtype=np.uint8)


def make_label(height: int, width: int, values, seed: int = 0) -> np.ndarray:
    """(h, w) uint8: blocks of the values, each at least once where there is room."""
    rng = np.random.default_rng(seed)
    blocks = np.resize(rng.permutation(np.asarray(values)), (4, 4))
    label = np.kron(blocks, np.ones((-(-height // 4), -(-width // 4)), blocks.dtype))
    return np.ascontiguousarray(label[:height, :width])


def save_pair(
    image: Path, label: Path, size=(48, 64), values=range(5), seed: int = 0
) -> np.ndarray:
    """A picture whose colours tell the class, and its map."""
    maps = make_label(*size, values, seed)
    noise = np.random.default_rng(seed).normal(0, 6, (*size, 3))
    picture = np.clip(COLOURS[maps].astype(float) + noise, 0, 255).astype(np.uint8)
    for path, content in ((image, picture), (label, maps.astype(np.uint8))):
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), content)
    return maps


def make_pairs(images: Path, labels: Path, number: int, suffix='.png', ending='.jpg', **options):
    """Pictures `0.jpg` ... and maps `0.png` ...; returns the folder of the pictures."""
    for i in range(number):
        save_pair(images / f'{i}{ending}', labels / f'{i}{suffix}', seed=i, **options)
    return images
