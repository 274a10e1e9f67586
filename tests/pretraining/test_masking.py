"""Masks: their statistics, and each rule by which a block is laid."""

import math
import random

import numpy as np
import pytest
import torch
from mmengine.registry import TRANSFORMS

from eva_mm.engine.exact_data import seeded
from eva_mm.errors import InputError
from eva_mm.pretraining.masking import AlternatingMask, BlockMask, MaskNoise


class Scripted:
    """Gives the numbers it was made with, in turn, and keeps the bounds that were asked for."""

    def __init__(self, areas, ratios=(), places=()):
        self.queues = dict(area=list(areas), ratio=list(ratios), place=list(places))
        self.areas_within, self.places_within = [], []
        self.turn = 0

    def uniform(self, low, high):
        self.turn += 1
        if self.turn % 2:
            self.areas_within.append((low, high))
            return self.queues['area'].pop(0)
        ratios = self.queues['ratio']
        return math.log(ratios.pop(0)) if ratios else 0.0

    def randint(self, low, high):
        self.places_within.append((low, high))
        places = self.queues['place']
        return places.pop(0) if places else 0


def draw(num_masked, areas, ratios=(), places=(), **options):
    generator = Scripted(areas, ratios, places)
    mask = BlockMask(num_masked=num_masked, generator=generator, **options).draw()
    return mask, generator


@pytest.fixture(scope='module')
def masks():
    mask = BlockMask(generator=random.Random(0))
    return np.stack([mask.draw() for _ in range(20_000)])


def test_counts_of_twenty_thousand_masks(masks):
    counts = masks.sum(axis=(1, 2))
    assert counts.mean() == pytest.approx(104.44, abs=0.1)
    assert (counts == 105).mean() == pytest.approx(0.65, abs=0.01)
    assert counts.max() == 105
    assert counts.min() >= 90


def test_every_cell_is_masked_and_the_middle_more_often(masks):
    share = masks.mean(axis=0)
    assert share.min() > 0.02
    assert share[7:9, 7:9].min() > 0.7
    flips = (share[::-1], share[:, ::-1], share.T)
    assert max(np.abs(share - flip).max() for flip in flips) < 0.03


def test_a_block_has_the_area_and_ratio_that_were_drawn():
    mask, generator = draw(105, [60, *[16] * 10], [0.6, *[1] * 10], [3, 2, *[4, 4] * 10])
    # sqrt(60 * 0.6) = 6 high, sqrt(60 / 0.6) = 10 wide, at row 3 and column 2; the ten that
    # follow lie inside it and add nothing.
    expected = np.zeros((16, 16), dtype=bool)
    expected[3:9, 2:12] = True
    assert np.array_equal(mask, expected)
    assert generator.areas_within == [(16, 105)] + [(16, 45)] * 10
    assert generator.places_within[:2] == [(0, 10), (0, 6)]


def test_sides_are_rounded_to_the_nearest():
    nothing_new = [1] * 10
    mask, _ = draw(16, [12, *nothing_new], min_area=1)
    assert mask.sum() == 9  # sqrt(12) = 3.46
    mask, _ = draw(16, [13], min_area=1)
    assert mask.sum() == 16  # sqrt(13) = 3.61


@pytest.mark.parametrize(('area', 'ratio'), [(90, 1 / 0.36), (90, 0.36), (256, 1)])
def test_a_block_as_large_as_the_grid_is_not_laid(area, ratio):
    """90 cells at these ratios are 16 x 6 or 6 x 16."""
    mask, generator = draw(105, [area] * 10, [ratio] * 10)
    assert not mask.any()
    assert not generator.places_within, 'no place is drawn for it'


def test_a_block_may_be_one_smaller_than_the_grid():
    mask, _ = draw(105, [105, *[16] * 10], [15 / 7, *[1] * 10])
    assert mask[:15, :7].all()
    assert mask.sum() == 105


def test_a_block_with_more_new_cells_than_are_left_is_not_laid():
    areas = [100, *[16] * 9, 5, *[16] * 10]
    mask, generator = draw(105, areas, places=[0, 0, *[12, 12] * 9, 14, 14])
    assert mask.sum() == 104, '16 new cells were too many nine times, 4 of a 2 x 2 block were not'
    # When less than the smallest area is left, it is drawn between the two.
    assert generator.areas_within == [(16, 105)] + [(16, 5)] * 10 + [(16, 1)] * 10


def test_only_new_cells_count():
    """A block of 25 that overlaps is laid although 5 are left."""
    mask, _ = draw(105, [100, 25], places=[0, 0, 4, 6])
    assert mask[:10, :10].all()
    assert mask[4:9, 6:11].all()
    assert mask.sum() == 105


def test_areas_are_bounded_by_the_largest_block():
    mask, generator = draw(105, [49, 36, *[81] * 10], places=[0, 0, 8, 8], max_area=49)
    assert generator.areas_within == [(16, 49)] * 2 + [(16, 20)] * 10
    assert mask.sum() == 85


def test_a_block_has_ten_tries_and_the_first_that_fails_ends_the_mask():
    mask, generator = draw(105, [49, *[300] * 9, 16, *[300] * 10], places=[0, 0, 8, 8])
    assert mask.sum() == 49 + 16
    assert len(generator.areas_within) == 1 + 10 + 10


def test_a_grid_need_not_be_square():
    mask = BlockMask((6, 12), num_masked=30, min_area=4, generator=random.Random(1))
    masks = np.stack([mask.draw() for _ in range(500)])
    assert masks.shape == (500, 6, 12)
    assert masks.any(axis=0).all()
    assert 25 < masks.sum(axis=(1, 2)).mean() <= 30


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        (dict(num_masked=257), 'num_masked=257: expected 1 to 256 for a grid of 16 x 16'),
        (dict(num_masked=0), 'num_masked=0: expected 1 to 256'),
        (dict(grid_size=4, num_masked=16), 'min_area=16: a block has at most 9 .* 4 x 4'),
        (dict(grid_size=(0, 4)), r'grid_size must be positive, got \(0, 4\)'),
    ],
)
def test_masks_that_cannot_be(options, match):
    with pytest.raises(InputError, match=match):
        BlockMask(**options)


def test_masks_follow_the_seed_of_the_sample():
    mask = TRANSFORMS.build(dict(type='BlockMask'))
    found = []
    for key in ((1, 2), (1, 2), (1, 3)):
        with seeded(*key):
            found.append(mask(dict(image='kept')))
    assert found[0]['image'] == 'kept'
    assert found[0]['mask'].dtype == torch.bool
    assert found[0]['mask'].shape == (256,)
    assert torch.equal(found[0]['mask'], found[1]['mask'])
    assert not torch.equal(found[0]['mask'], found[2]['mask'])


def test_masks_are_row_major():
    generator = Scripted([4], [1], [0, 13])
    results = BlockMask(num_masked=4, min_area=1, generator=generator)({})
    assert results['mask'].nonzero().flatten().tolist() == [13, 14, 29, 30]


def test_the_fixed_mask_hides_even_patches():
    results = TRANSFORMS.build(dict(type='AlternatingMask'))({})
    assert results['mask'].dtype == torch.bool
    assert results['mask'].nonzero().flatten().tolist() == list(range(0, 256, 2))
    assert len(AlternatingMask((3, 5))({})['mask']) == 15


def test_noise_is_uniform_and_follows_the_seed_of_the_sample():
    noise = TRANSFORMS.build(dict(type='MaskNoise', grid_size=64))
    assert isinstance(noise, MaskNoise)
    with seeded(4):
        first = noise({})['noise']
    with seeded(4):
        again, other = noise({})['noise'], noise({})['noise']
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= first.min() < 0.01
    assert 0.99 < first.max() < 1
    assert first.mean() == pytest.approx(0.5, abs=0.03)
