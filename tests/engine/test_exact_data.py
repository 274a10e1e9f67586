"""Samples as a function of (seed, position)."""

import copy
import itertools
import pickle
import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, Dataset

from eva_mm.engine import exact_data
from eva_mm.engine.exact_data import (
    ExactInfiniteSampler,
    PositionedIndex,
    PositionSeeded,
    seed_generators,
    seeded,
)
from eva_mm.engine.hooks.iteration_seed import seed_iteration


def draw():
    """A number from each global generator."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Noise(Dataset):
    """Sample i is (i, three random numbers)."""

    def __len__(self):
        return 10

    def __getitem__(self, idx):
        return torch.tensor([idx, *draw()], dtype=torch.float64)


class ExactNoise(PositionSeeded, Noise):
    pass


def sampler(rank=0, world_size=1, monkeypatch=None, **kwargs):
    if monkeypatch:
        monkeypatch.setattr(exact_data, 'get_dist_info', lambda: (rank, world_size))
    return ExactInfiniteSampler(Noise(), **{'seed': 3, **kwargs})


def taken(iterable, count):
    return list(itertools.islice(iter(iterable), count))


def test_index_keeps_its_position_on_the_way_to_a_worker():
    index = PositionedIndex(4, position=17, seed=9)
    for other in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert (int(other), other.position, other.seed) == (4, 17, 9)
    assert 'abcdefg'[index] == 'e'


def test_keys_are_independent_and_repeat():
    streams = {}
    for key in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 2**33)]:
        seed_generators(*key)
        streams[key] = draw()
        seed_generators(*key)
        assert draw() == streams[key]
    numbers = [column for column in zip(*streams.values())]
    assert all(len(set(column)) == len(streams) for column in numbers)


def test_generators_are_put_back_even_after_an_error():
    seed_generators(1)
    expected = [draw(), draw()]
    seed_generators(1)
    assert draw() == expected[0]
    with suppress(ZeroDivisionError), seeded(2):
        draw()
        raise ZeroDivisionError
    assert draw() == expected[1]


def test_samples_depend_on_their_position_alone():
    first = ExactNoise()[PositionedIndex(3, 7, 0)]
    draw()
    assert torch.equal(ExactNoise()[PositionedIndex(3, 7, 0)], first)
    others = [PositionedIndex(3, 8, 0), PositionedIndex(3, 7, 1)]
    assert all(not torch.equal(ExactNoise()[other][1:], first[1:]) for other in others)
    plain = ExactNoise()[3]
    assert not torch.equal(ExactNoise()[3], plain), 'plain indices are not seeded'


def test_epochs_are_permutations_and_positions_count_on():
    indices = taken(sampler(), 35)
    assert [index.position for index in indices] == list(range(35))
    epochs = [indices[:10], indices[10:20], indices[20:30]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert taken(sampler(seed=4), 10) != epochs[0]
    assert taken(sampler(shuffle=False), 12) == [*range(10), 0, 1]
    with pytest.raises(ValueError, match='empty'):
        ExactInfiniteSampler([])
    with pytest.raises(ValueError, match='negative'):
        sampler().skip(-1)


def test_processes_share_each_iteration_whatever_their_number(monkeypatch):
    """One process with batch 4, two with 2, four with 1: the same samples, resumed or not."""
    whole = [(int(i), i.position) for i in taken(sampler(), 80)]
    for world_size, iteration in [(2, 0), (2, 7), (4, 3)]:
        batch = 4 // world_size
        seen = []
        for rank in range(world_size):
            part = sampler(rank, world_size, monkeypatch)
            part.skip(iteration * batch)
            seen += [(int(i), i.position) for i in taken(part, batch)]
        assert sorted(seen) == sorted(whole[4 * iteration : 4 * iteration + 4])


def test_a_late_start_draws_one_order_alone(monkeypatch):
    """Of 30 million images an order takes seconds, and a resumed run may be in its 150th epoch."""
    whole = taken(sampler(), 70)
    late, drawn, randperm = sampler(), [], torch.randperm
    monkeypatch.setattr(torch, 'randperm', lambda *a, **k: drawn.append(a) or randperm(*a, **k))
    late.skip(64)
    assert taken(late, 6) == whole[64:]
    assert drawn == [(10,)]
    assert len({tuple(whole[i : i + 10]) for i in range(0, 70, 10)}) == 7


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('skip_by', ['skip', 'next'])
def test_a_resumed_loader_gives_the_same_batches(num_workers, skip_by):
    """`next` is how mmengine 0.10.7, which knows no `skip`, gets there."""
    straight = taken(DataLoader(ExactNoise(), 4, sampler=sampler()), 12)
    loader = DataLoader(ExactNoise(), 4, sampler=sampler(), num_workers=num_workers)
    iterator = _InfiniteDataloaderIterator(loader)
    if skip_by == 'skip':
        iterator.skip_iter(7)
    else:
        taken(iterator, 7)
    for batch, expected in zip(taken(iterator, 5), straight[7:]):
        assert torch.equal(batch, expected)


def test_iterations_differ_by_rank_and_leave_nothing_to_chance():
    numbers = {}
    for key in itertools.product((0, 1), (0, 1), (0, 1)):
        seed_iteration(*key)
        numbers[key] = draw()
        seed_iteration(*key)
        assert draw() == numbers[key]
    assert len(set(numbers.values())) == 8


def test_registered_for_every_host():
    built = DATA_SAMPLERS.build(
        dict(type='ExactInfiniteSampler', dataset=Noise(), shuffle=False, seed=0)
    )
    assert taken(built, 3) == [0, 1, 2]
