"""Writes scenes as an image classification data set: one folder per class, as ImageNet unpacks."""

import os
from pathlib import Path

import numpy as np

from eva_mm.demo.catalogue import CATEGORIES
from eva_mm.demo.data_folder import DataFolder, check_seed, check_size, write_image
from eva_mm.demo.plan import SPLITS, ScenePlan
from eva_mm.demo.scenes import draw_scene

# Raise when the same arguments give other files than before.
GENERATOR_VERSION = 1
_MAX_OBJECTS = 3
# Keeps the scenes apart from those of the other kinds of data sets with the same seed.
_STREAM = 1


def generate_imagenet(
    out: str | os.PathLike,
    train_per_class: int = 50,
    val_per_class: int = 20,
    size: int | tuple[int, int] = 96,
    seed: int = 0,
) -> Path:
    """Generates a small classification data set of 24 classes.

    Writes ``{train,val}/<class>/<class>_00000.jpg`` ...; a class is a category of the demo scenes
    such as ``red_white_star``, and an image holds one to three objects of it. The same arguments
    give the same bytes. A complete set made with the same arguments is left alone; a half-written
    or different one is made anew.

    Args:
        out: Folder of the data set.
        train_per_class: Training images of each class.
        val_per_class: Validation images of each class.
        size: Image side, or (height, width), in pixels.
        seed: Any non-negative integer.

    Returns:
        The folder.

    Raises:
        ValueError: No images, images too small, or a negative seed.
        FileExistsError: ``out`` holds data this function did not write.
    """
    size = check_size(size)
    counts = {'train': train_per_class, 'val': val_per_class}
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f'{split}_per_class is {count}, expected at least 1')
    arguments = {
        'kind': 'imagenet', 'version': GENERATOR_VERSION, **counts, 'size': list(size),
        'seed': check_seed(seed),
    }  # fmt: skip
    folder = DataFolder(out, SPLITS)
    if folder.is_complete(arguments):
        return folder.root
    folder.claim()
    for split, count in counts.items():
        for category in range(len(CATEGORIES)):
            _write_class(folder.root, split, category, count, size, seed)
    folder.finish(arguments)
    return folder.root


def _write_class(
    root: Path, split: str, category: int, count: int, size: tuple[int, int], seed: int
) -> None:
    name = CATEGORIES[category].name
    (root / split / name).mkdir(exist_ok=True)
    for number in range(count):
        # By category and number, so that more images per class leave the first ones as they are.
        key = np.random.SeedSequence((seed, _STREAM, category, number))
        objects = int(np.random.default_rng(key).integers(1, _MAX_OBJECTS + 1))
        plan = ScenePlan((category,) * objects, None, ())
        scene = draw_scene(plan, size, int(key.generate_state(1)[0]), split, number)
        write_image(root / split / name / f'{name}_{number:05d}.jpg', scene.image)
