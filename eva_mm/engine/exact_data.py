"""Training data as a function of (seed, position): the same after a resume, on any workers.

A position counts the samples that all processes together have been given since the start of
training. Samplers attach it to each index (:class:`PositionedIndex`); data sets seed their
augmentations by it (:class:`PositionSeeded`). So it does not matter when a worker was born, how
many there are, or how the samples are dealt to processes: in iteration i, one process with batch 4
and two with batch 2 see the same four samples, augmented alike.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler


class PositionedIndex(int):
    """Index of a sample that knows its position in the stream of all processes.

    An ``int`` to every data set; pickles, so that it reaches the workers of a ``DataLoader``.

    Args:
        index: of the sample in the data set.
        position: number of samples drawn before it, over all processes.
        seed: of the stream.
    """

    position: int
    seed: int

    def __new__(cls, index: int, position: int, seed: int) -> PositionedIndex:
        """Attach position and seed to an index."""
        self = super().__new__(cls, index)
        self.position = position
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int, int]:
        """Arguments by which ``pickle`` and ``copy`` make it anew."""
        return int(self), self.position, self.seed


def seed_generators(*key: int) -> None:
    """Seed python's ``random``, numpy's and torch's global CPU generators.

    CUDA's generators are left alone: workers must not touch CUDA.

    Args:
        *key: non-negative numbers; each key gives independent streams
            (:class:`numpy.random.SeedSequence`).
    """
    # The length comes first: SeedSequence takes (seed, 7) and (seed, 7, 0) for the same key.
    words = np.random.SeedSequence((len(key), *key)).generate_state(8)
    random.seed(words[:3].tobytes())
    np.random.seed(words[3:6])
    torch.default_generator.manual_seed(int(words[6]) << 31 | int(words[7]) >> 1)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Run a block under :func:`seed_generators`, then put the generators back as they were.

    Loading in the main process (no workers) therefore leaves the model's random numbers alone.
    """
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_generators(*key)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)


class PositionSeeded:
    """Mixin of data sets: augmentations depend on the seed and the sample's position alone.

    It stands before the data set in the bases, so that all of ``__getitem__`` runs seeded, the
    choice of a substitute for a sample that cannot be used included. Plain indices, as samplers
    of evaluation give them, are loaded as without it.
    """

    def __getitem__(self, idx: int) -> Any:
        """Load a sample; see the class."""
        if not isinstance(idx, PositionedIndex):
            return super().__getitem__(idx)
        with seeded(idx.seed, idx.position):
            return super().__getitem__(idx)


@DATA_SAMPLERS.register_module()
class ExactInfiniteSampler(Sampler):
    """Endless sampler whose indices carry their position; a resumed run skips to where it was.

    All processes draw the same stream of epochs and take every ``world_size``-th index of it.
    mmengine's loop calls :meth:`skip` on resuming; one without that feature (mmengine 0.10.7)
    loads and drops what was seen, and arrives at the same place.

    Args:
        dataset: only its length is asked for.
        shuffle: whether each epoch is a new permutation.
        seed: of the stream; drawn and shared between processes when None.

    Raises:
        ValueError: the data set is empty.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        if len(dataset) == 0:
            raise ValueError('cannot sample from an empty data set')
        self.dataset = dataset
        self.rank, self.world_size = get_dist_info()
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self._start = 0

    def __iter__(self) -> Iterator[PositionedIndex]:
        """Indices for this process, from the place set by :meth:`skip`, without end."""
        position = self._start * self.world_size + self.rank
        before = 0  # samples in the epochs that are over
        for epoch in self._epochs():
            while position < before + len(epoch):
                yield PositionedIndex(int(epoch[position - before]), position, self.seed)
                position += self.world_size
            before += len(epoch)

    def __len__(self) -> int:
        """Number of samples, as for mmengine's ``InfiniteSampler`` (the stream has no end)."""
        return len(self.dataset)

    def skip(self, num_samples: int) -> None:
        """Let the next iterator start at an absolute place: what mmengine calls on resuming.

        Cheap: no order of an epoch that is over is drawn, no data is read.

        Args:
            num_samples: indices that this process has been given since the start of training.

        Raises:
            ValueError: a negative number.
        """
        if num_samples < 0:
            raise ValueError(f'num_samples must not be negative, got {num_samples}')
        self._start = num_samples

    def _epochs(self) -> Iterator[Sequence[int] | torch.Tensor]:
        """Order of the samples in each epoch, one after another."""
        size = len(self.dataset)
        for epoch in itertools.count():
            yield _Permutation(size, self.seed, epoch) if self.shuffle else range(size)


class _Permutation:
    """A random order of an epoch, drawn when it is first asked for.

    Of tens of millions of images it takes seconds, and a resumed run passes over many epochs.
    """

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        self.size, self.seed, self.epoch = size, seed, epoch

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> int:
        return int(self._order[place])

    @cached_property
    def _order(self) -> torch.Tensor:
        # No key of `seed_generators` begins with 0.
        word = np.random.SeedSequence((0, self.seed, self.epoch)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(word >> np.uint64(1)))
        return torch.randperm(self.size, generator=generator)
