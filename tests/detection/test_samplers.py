"""Repeat-factor sampling: factors, means, ranks, resuming."""

import itertools

import pytest
import torch
from mmdet.registry import DATA_SAMPLERS

from eva_mm.detection.samplers import InfiniteRepeatFactorSampler, repeat_factors
from eva_mm.engine import exact_data


class Categories:
    """A data set that knows the categories of its images, nothing else."""

    def __init__(self, sets):
        self.sets = sets

    def __len__(self):
        return len(self.sets)

    def get_cat_ids(self, idx):
        return self.sets[idx]


# Category 1 in all of 16 images, 2 in one, 3 in four; the last image is empty of them.
SETS = [[1, 1, 2], [1, 3], [1, 3], [1, 3], [1, 3], *[[1]] * 10, []]


def taken(sampler, count):
    return list(itertools.islice(iter(sampler), count))


def test_factors_by_hand():
    factors = repeat_factors(SETS, threshold=0.5)
    # f(2) = 1/16: sqrt(8); f(3) = 4/16: sqrt(2); f(1) = 15/16 > 0.5: 1.
    expected = [8**0.5, *[2**0.5] * 4, *[1.0] * 11]
    torch.testing.assert_close(factors, torch.tensor(expected))
    assert repeat_factors(SETS, threshold=0.05).tolist() == [1.0] * 16


def test_frequency_of_images_follows_the_factors():
    sampler = InfiniteRepeatFactorSampler(Categories(SETS), repeat_thr=0.5, seed=3)
    epochs = list(itertools.islice(sampler._epochs(), 2000))
    counts = torch.stack([torch.bincount(epoch, minlength=16) for epoch in epochs]).double()
    torch.testing.assert_close(
        counts.mean(0), sampler.repeat_factors.double(), atol=0.04, rtol=0
    )  # 3.6 standard errors of a coin
    assert set(counts[:, 0].tolist()) == {2.0, 3.0}, 'the fraction is rounded anew each epoch'
    assert set(counts[:, 5].tolist()) == {1.0}


def test_ranks_share_one_stream(monkeypatch):
    dataset = Categories(SETS)
    whole = taken(InfiniteRepeatFactorSampler(dataset, 0.5, seed=7), 300)
    for rank in range(3):
        monkeypatch.setattr(exact_data, 'get_dist_info', lambda rank=rank: (rank, 3))
        assert taken(InfiniteRepeatFactorSampler(dataset, 0.5, seed=7), 100) == whole[rank::3]


@pytest.mark.parametrize('position', [0, 1, 9, 57])
def test_resuming_continues_exactly(monkeypatch, position):
    monkeypatch.setattr(exact_data, 'get_dist_info', lambda: (1, 2))
    whole = taken(InfiniteRepeatFactorSampler(Categories(SETS), 0.5, seed=7), 200)
    resumed = InfiniteRepeatFactorSampler(Categories(SETS), 0.5, seed=7)
    resumed.skip(position)
    assert taken(resumed, 100) == whole[position : position + 100]


def test_seed_and_shuffle():
    dataset = Categories(SETS)
    one = taken(InfiniteRepeatFactorSampler(dataset, 0.5, seed=1), 50)
    assert one == taken(InfiniteRepeatFactorSampler(dataset, 0.5, seed=1), 50)
    assert one != taken(InfiniteRepeatFactorSampler(dataset, 0.5, seed=2), 50)
    ordered = InfiniteRepeatFactorSampler(dataset, 0.5, shuffle=False, seed=1)
    epoch = next(ordered._epochs()).tolist()
    assert epoch == sorted(epoch)
    assert taken(ordered, len(epoch)) == epoch


def test_more_ranks_than_images(monkeypatch):
    monkeypatch.setattr(exact_data, 'get_dist_info', lambda: (6, 8))
    sampler = InfiniteRepeatFactorSampler(Categories([[1], [1], [1]]), 0.001, seed=0)
    assert set(taken(sampler, 60)) == {0, 1, 2}


def test_feeds_a_dataloader_from_its_registered_name():
    sampler = DATA_SAMPLERS.build(
        dict(type='InfiniteRepeatFactorSampler', dataset=Categories(SETS), repeat_thr=0.5, seed=0)
    )
    loader = torch.utils.data.DataLoader(list(range(16)), batch_size=4, sampler=sampler)
    batches = list(itertools.islice(loader, 20))
    assert torch.cat(batches).tolist() == taken(sampler, 80)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match='get_cat_ids'):
        InfiniteRepeatFactorSampler([1, 2], 0.001)
    with pytest.raises(ValueError, match='repeat_thr'):
        InfiniteRepeatFactorSampler(Categories(SETS), 2)
    with pytest.raises(ValueError, match='empty'):
        InfiniteRepeatFactorSampler(Categories([]), 0.001)
    with pytest.raises(ValueError, match='negative'):
        InfiniteRepeatFactorSampler(Categories(SETS), 0.001, seed=0).skip(-1)
