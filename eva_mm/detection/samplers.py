"""Repeat-factor sampling of long-tailed data sets.

Source: Gupta et al., "LVIS" (arXiv 1908.03195), and the sampler that the published LVIS run
uses, github.com/baaivision/EVA, EVA-01/det/detectron2/data/samplers/distributed_sampler.py.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized

import torch
from mmdet.registry import DATA_SAMPLERS

from eva_mm.engine.exact_data import ExactInfiniteSampler


def repeat_factors(
    category_ids_per_image: Sequence[Iterable[int]], threshold: float
) -> torch.Tensor:
    """How often each image is shown per epoch, on average.

    With f(c) the fraction of images that contain category c, r(c) = max(1, sqrt(t / f(c))); an
    image takes the largest r of its categories, 1 if it has none.

    Args:
        category_ids_per_image: categories of each image; repetitions do not matter.
        threshold: t; categories in fewer than this fraction of the images are oversampled.

    Returns:
        Float32 tensor of shape (number of images,), each at least 1.
    """
    sets = [set(ids) for ids in category_ids_per_image]
    images_with = Counter(category for ids in sets for category in ids)
    factor = {
        category: max(1.0, math.sqrt(threshold * len(sets) / count))
        for category, count in images_with.items()
    }
    largest = [max((factor[category] for category in ids), default=1.0) for ids in sets]
    return torch.tensor(largest, dtype=torch.float32)


@DATA_SAMPLERS.register_module()
class InfiniteRepeatFactorSampler(ExactInfiniteSampler):
    """Infinite sampler that shows images with rare categories more often.

    Each epoch rounds every repeat factor up or down at random, so that its mean is kept, then
    shuffles. The stream depends on the seed alone; see :class:`ExactInfiniteSampler` for how
    processes share it and how a resumed run finds its place.

    Args:
        dataset: offers ``get_cat_ids(idx)``, as mmdet's data sets do.
        repeat_thr: threshold t of :func:`repeat_factors` (published: 0.001).
        shuffle: whether to shuffle within the epoch.
        seed: of the stream; drawn and shared between ranks when None.

    Raises:
        TypeError: the data set does not tell categories.
        ValueError: ``repeat_thr`` is no fraction, or the data set is empty.
    """

    def __init__(
        self, dataset: Sized, repeat_thr: float, shuffle: bool = True, seed: int | None = None
    ) -> None:
        if not hasattr(dataset, 'get_cat_ids'):
            raise TypeError(
                f'{type(self).__name__} needs a data set with get_cat_ids(idx), '
                f'got {type(dataset).__name__}'
            )
        if not 0 <= repeat_thr <= 1:
            raise ValueError(f'repeat_thr is a fraction of images, 0 to 1, got {repeat_thr}')
        super().__init__(dataset, shuffle, seed)
        self.repeat_factors = repeat_factors(
            [dataset.get_cat_ids(idx) for idx in range(len(dataset))], repeat_thr
        )

    def _epochs(self) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        whole = self.repeat_factors.floor()
        fraction = self.repeat_factors - whole
        indices = torch.arange(len(self.repeat_factors))
        while True:
            extra = torch.rand(len(fraction), generator=generator) < fraction
            epoch = indices.repeat_interleave((whole + extra).long())
            if self.shuffle:
                epoch = epoch[torch.randperm(len(epoch), generator=generator)]
            yield epoch
