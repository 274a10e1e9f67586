"""The federated loss: which classes take part, how often, and what they cost."""

import pytest
import torch
import torch.nn.functional as F

from eva_mm.detection import FederatedLoss


def test_occurring_classes_always_take_part_and_background_takes_a_place():
    loss = FederatedLoss(6, num_sampled_classes=4, class_image_counts=[1, 1, 1, 1, 1, 1])
    with_background = torch.tensor([2, 2, 5, 6])
    foreground_only = torch.tensor([2, 2, 5])
    for _ in range(50):
        kept = loss.sample_classes(with_background)
        assert {2, 5} <= set(kept.tolist())
        assert len(kept) == len(set(kept.tolist())) == 3
        assert len(loss.sample_classes(foreground_only)) == 4
    many = torch.tensor([0, 1, 2, 3, 4])
    assert sorted(loss.sample_classes(many).tolist()) == [0, 1, 2, 3, 4]


def test_negative_classes_are_drawn_by_the_root_of_their_image_counts():
    counts = [100, 1, 4, 9, 16, 0]
    loss = FederatedLoss(6, num_sampled_classes=2, class_image_counts=counts)
    torch.manual_seed(0)
    labels = torch.tensor([0, 0])  # one vacancy besides class 0
    draws = torch.zeros(6)
    repeats = 8000
    for _ in range(repeats):
        draws[loss.sample_classes(labels)] += 1
    assert draws[0] == repeats
    expected = torch.tensor([1.0, 2, 3, 4, 0]) / 10
    assert torch.allclose(draws[1:] / repeats, expected, atol=0.02)


def test_more_places_than_classes():
    loss = FederatedLoss(3, num_sampled_classes=50, class_image_counts=[5, 0, 2])
    assert sorted(loss.sample_classes(torch.tensor([3])).tolist()) == [0, 2]


def test_value_is_the_sum_over_kept_classes_per_box():
    loss = FederatedLoss(4, num_sampled_classes=2, class_image_counts=[1, 1, 1, 1])
    labels = torch.tensor([1, 3, 1])
    logits = torch.randn(3, 5, requires_grad=True)
    expected = sum(
        F.binary_cross_entropy_with_logits(logits[:, c], (labels == c).float(), reduction='sum')
        for c in (1, 3)
    ) / len(labels)
    value = loss(logits, labels)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    value.backward()
    # Classes left out and the unused last logit get no gradient at all.
    assert torch.count_nonzero(logits.grad[:, [0, 2, 4]]) == 0


def test_counts_must_fit_the_classes():
    with pytest.raises(ValueError, match='2 classes given for num_classes=3'):
        FederatedLoss(3, class_image_counts=[1, 2])


def test_unset_counts_are_an_error():
    loss = FederatedLoss(3, num_sampled_classes=2)
    with pytest.raises(ValueError, match='class_image_counts.*FederatedClassCountsHook'):
        loss(torch.randn(2, 4), torch.tensor([3, 3]))
