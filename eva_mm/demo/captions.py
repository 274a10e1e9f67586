"""Writes scenes with a sentence each: image-text pairs in the layout open_clip's trainer reads."""

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eva_mm.demo.catalogue import CATEGORIES, Category
from eva_mm.demo.data_folder import DataFolder, check_seed, check_size, write_bytes, write_image
from eva_mm.demo.plan import SPLITS, ScenePlan
from eva_mm.demo.scenes import draw_scene

# Raise when the same arguments give other files than before.
GENERATOR_VERSION = 1
COLUMNS = ('filepath', 'title')  # --csv-img-key and --csv-caption-key of open_clip's trainer
_MAX_OBJECTS = 4
_REPEAT_PROBABILITY = 0.25
_NUMBERS = ('', 'a', 'two', 'three', 'four')
_TEMPLATES = ('{}', 'a photo of {}', 'a picture of {}', 'an image with {}')
# Keeps the scenes apart from those of the other kinds of data sets with the same seed.
_STREAM = 2


def generate_captions(
    out: str | os.PathLike,
    num_train: int = 4000,
    num_val: int = 400,
    size: int | tuple[int, int] = 96,
    seed: int = 0,
) -> Path:
    """Generates a small set of image-text pairs.

    Writes ``{train,val}/000000.jpg`` ... and ``{train,val}.csv``, whose lines hold the path of an
    image, below the file's own folder, and its caption, with a tab between. The same arguments
    give the same bytes. A complete set made with the same arguments is left alone; a half-written
    or different one is made anew.

    Args:
        out: Folder of the data set.
        num_train: Training pairs.
        num_val: Validation pairs.
        size: Image side, or (height, width), in pixels.
        seed: Any non-negative integer.

    Returns:
        The folder.

    Raises:
        ValueError: No images, images too small, or a negative seed.
        FileExistsError: ``out`` holds data this function did not write.
    """
    size = check_size(size)
    counts = {'train': num_train, 'val': num_val}
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f'num_{split} is {count}, expected at least 1')
    arguments = {
        'kind': 'captions', 'version': GENERATOR_VERSION, **counts, 'size': list(size),
        'seed': check_seed(seed),
    }  # fmt: skip
    folder = DataFolder(out, SPLITS, [f'{split}.csv' for split in SPLITS])
    if folder.is_complete(arguments):
        return folder.root
    folder.claim()
    for split, count in counts.items():
        rows = []
        for number in range(count):
            name = f'{split}/{number:06d}.jpg'
            image, caption = _draw_pair(split, number, size, seed)
            write_image(folder.root / name, image)
            rows.append((name, caption))
        write_bytes(folder.root / f'{split}.csv', _table(rows))
    folder.finish(arguments)
    return folder.root


def _draw_pair(split: str, number: int, size: tuple[int, int], seed: int) -> tuple[np.ndarray, str]:
    key = np.random.SeedSequence((seed, _STREAM, SPLITS.index(split), number))
    rng = np.random.default_rng(key)
    categories: list[int] = []
    for _ in range(rng.integers(1, _MAX_OBJECTS + 1)):
        repeat = categories and rng.random() < _REPEAT_PROBABILITY
        categories.append(int(rng.choice(categories) if repeat else rng.integers(len(CATEGORIES))))
    scene = draw_scene(
        ScenePlan(tuple(categories), None, ()), size, int(key.generate_state(1)[0]), split, number
    )
    template = _TEMPLATES[rng.integers(len(_TEMPLATES))]
    return scene.image, template.format(describe(categories))


def describe(categories: Sequence[int]) -> str:
    """A scene in words, in the order in which the categories first come.

    Args:
        categories: Index into ``CATEGORIES`` of each object; at most four of one category.

    Examples:
        'a blue square', 'two red discs, a star with red and white stripes and a green triangle'.
    """
    parts = [_phrase(CATEGORIES[index], count) for index, count in Counter(categories).items()]
    return ' and '.join(filter(None, [', '.join(parts[:-1]), parts[-1]]))


def _phrase(category: Category, count: int) -> str:
    shape = category.shape + ('' if count == 1 else 'es' if category.shape[-1] == 's' else 's')
    number, base, accent = _NUMBERS[count], category.base, category.accent
    if category.pattern in ('stripes', 'checker'):
        surface = 'checks' if category.pattern == 'checker' else 'stripes'
        return f'{number} {shape} with {base} and {accent} {surface}'
    if count == 1 and base[0] in 'aeiou':
        number = 'an'
    details = {'plain': '', 'dots': f' with {accent} dots', 'core': f' with {accent} core'}
    return f'{number} {base} {shape}{details[category.pattern]}'


def _table(rows: Sequence[tuple[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter='\t', lineterminator='\n')
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue().encode()
