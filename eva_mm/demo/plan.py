"""Which categories stand in which image: the long tail of the demo data set.

LVIS (arXiv 1908.03195, and the v1 release) calls a category rare when 1-10 training images hold
it, common with 11-100 and frequent above. The plan fixes these image counts before anything is
drawn; ``scenes`` then draws every planned instance or starts the scene again.
"""

import warnings
from dataclasses import dataclass

import numpy as np

from eva_mm.demo.catalogue import CATEGORIES

SPLITS = ('train', 'val')
# Below this number six frequent categories would fill nearly every image.
MIN_TRAIN_FOR_GROUPS = 180
# With fewer images not every category finds room (`_MAX_LOAD` instances per image).
MIN_IMAGES = 6
_MIN_IMAGES_FOR_PAIRS = 8
_MAX_LOAD = 7
_REPEAT_PROBABILITY = 0.06
_NOT_EXHAUSTIVE_PROBABILITY = 0.1


@dataclass(frozen=True)
class ScenePlan:
    """Content of one image.

    Attributes:
        categories: Index into ``CATEGORIES`` of each instance to annotate; repeats allowed.
        unlisted: Category index of one more instance that LVIS leaves unannotated (its category
            is then not exhaustively annotated here), or ``None``. Always one of ``categories``.
        negatives: Category indices to list as verified absent: some of those not in the image.
    """

    categories: tuple[int, ...]
    unlisted: int | None
    negatives: tuple[int, ...]


def frequency_group(image_count: int) -> str:
    """LVIS's group of a category in ``image_count`` training images: ``'r'``, ``'c'``, ``'f'``."""
    if image_count <= 10:
        return 'r'
    return 'c' if image_count <= 100 else 'f'


def _target_images(group: str, rank: float, split: str, num_images: int) -> int:
    """Number of images a category occurs in; ``rank`` in [0, 1] spreads it within its group."""
    if split == 'val':
        share = {'f': 0.4 + 0.04 * rank, 'c': 0.15 + 0.03 * rank, 'r': 0.085}[group]
        return max(1, round(share * num_images))
    share = {'f': 0.51 + 0.04 * rank, 'c': 0.06 + 0.09 * rank, 'r': 0.04 + 0.01 * rank}[group]
    target = round(share * num_images)
    floor, ceiling = {'f': (101, num_images), 'c': (11, 100), 'r': (8, 10)}[group]
    if num_images < MIN_TRAIN_FOR_GROUPS:
        floor = 1
    return min(max(target, floor), ceiling)


def _targets(split: str, num_images: int) -> list[tuple[int, int]]:
    """(category index, number of images), rare first so that these find the emptiest images."""
    targets = []
    for group in 'rcf':
        members = [i for i, category in enumerate(CATEGORIES) if category.group == group]
        for position, index in enumerate(members):
            rank = position / (len(members) - 1)
            targets.append((index, _target_images(group, rank, split, num_images)))
    return targets


def _spread(split: str, num_images: int, rng: np.random.Generator) -> list[list[int]]:
    """Deals the categories to images, preferring images with few instances so far."""
    contents: list[list[int]] = [[] for _ in range(num_images)]
    for index, target in _targets(split, num_images):
        load = np.array([len(content) for content in contents])
        order = np.argsort(load + rng.uniform(0, 2.5, num_images), kind='stable')
        order = order[load[order] < _MAX_LOAD][:target]
        # A rare category comes in pairs: few images, yet enough instances to learn and to score.
        paired = CATEGORIES[index].group == 'r' and num_images >= _MIN_IMAGES_FOR_PAIRS
        copies = 2 if paired else 1
        for image in order:
            contents[image] += [index] * min(copies, _MAX_LOAD - len(contents[image]))
    return contents


def _repeat_some(contents: list[list[int]], rng: np.random.Generator) -> None:
    for content in contents:
        for index in sorted(set(content)):
            if rng.random() < _REPEAT_PROBABILITY and len(content) < _MAX_LOAD:
                content.append(index)


def _choose_unlisted(contents: list[list[int]], rng: np.random.Generator) -> list[int | None]:
    """One further, unannotated instance in some images; never of a rare category."""
    candidates = [
        sorted({i for i in content if CATEGORIES[i].group != 'r'}) for content in contents
    ]
    chosen = [
        int(rng.choice(options)) if options and rng.random() < _NOT_EXHAUSTIVE_PROBABILITY else None
        for options in candidates
    ]
    if not any(index is not None for index in chosen):
        first = next(i for i, options in enumerate(candidates) if options)
        chosen[first] = candidates[first][0]
    return chosen


def _choose_negatives(content: list[int], rng: np.random.Generator) -> tuple[int, ...]:
    """A third to a half of the absent categories."""
    absent = np.setdiff1d(np.arange(len(CATEGORIES)), content)
    count = rng.integers(len(absent) // 3, len(absent) // 2 + 1)
    return tuple(int(i) for i in np.sort(rng.choice(absent, count, replace=False)))


def plan_split(split: str, num_images: int, seed: int) -> list[ScenePlan]:
    """Plans every image of a split.

    Args:
        split: ``'train'`` or ``'val'``.
        num_images: Number of images. From ``MIN_TRAIN_FOR_GROUPS`` training images on, the
            intended groups hold by LVIS's rule; below, all counts shrink in proportion and a
            warning is given (the written groups always follow the counts).
        seed: Any non-negative integer.

    Raises:
        ValueError: ``num_images`` is too small to show every category.
    """
    if num_images < MIN_IMAGES:
        raise ValueError(
            f'num_{split} is {num_images}, but at least {MIN_IMAGES} images are needed to show '
            f'all {len(CATEGORIES)} categories'
        )
    if split == 'train' and num_images < MIN_TRAIN_FOR_GROUPS:
        warnings.warn(
            f'{num_images} training images are too few for frequent categories (each in more than '
            f'100 images); from {MIN_TRAIN_FOR_GROUPS} images on all three groups are there',
            stacklevel=2,
        )
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    contents = _spread(split, num_images, rng)
    _repeat_some(contents, rng)
    unlisted = _choose_unlisted(contents, rng)
    return [
        ScenePlan(
            tuple(int(i) for i in rng.permutation(content)), extra, _choose_negatives(content, rng)
        )
        for content, extra in zip(contents, unlisted)
    ]
