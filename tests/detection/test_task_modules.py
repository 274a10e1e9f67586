"""Anchor matching and box coding, each case computed by hand and failing for stock mmdet."""

import math

import pytest
import torch
from mmdet.models.task_modules import DeltaXYWHBBoxCoder, MaxIoUAssigner
from mmengine.registry import init_default_scope

from eva_mm.detection import EVADeltaXYWHBBoxCoder, EVAMaxIoUAssigner
from eva_mm.detection.task_modules import clip_boxes, nonempty

RPN = dict(pos_iou_thr=0.7, neg_iou_thr=0.3, match_low_quality=True)


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


def assign(assigner_type, overlaps, **options):
    labels = torch.arange(len(overlaps)) + 10
    result = assigner_type(**{**RPN, **options}).assign_wrt_overlaps(torch.tensor(overlaps), labels)
    return result.gt_inds.tolist(), result.labels.tolist()


def test_low_quality_match_keeps_the_anchors_own_best_ground_truth():
    # Anchor 0 overlaps ground truth 0 best (0.9), and is the best anchor of ground truth 1 (0.8).
    overlaps = [[0.9, 0.2, 0.0], [0.8, 0.1, 0.0]]
    assert assign(EVAMaxIoUAssigner, overlaps) == ([1, 0, 0], [10, -1, -1])
    assert assign(MaxIoUAssigner, overlaps)[0] == [2, 0, 0]


def test_low_quality_match_has_no_least_iou_and_takes_every_tie():
    # Ground truth 0 has no better anchor than two at 0.05; mmdet's configs demand 0.3.
    overlaps = [[0.05, 0.05, 0.0], [0.0, 0.4, 0.75]]
    inds, labels = assign(EVAMaxIoUAssigner, overlaps)
    # Anchor 1 turns positive because of ground truth 0, but regresses to its own best, 1.
    assert inds == [1, 2, 2]
    assert labels == [10, 11, 11]
    assert assign(MaxIoUAssigner, overlaps, min_pos_iou=0.3)[0] == [0, -1, 2]


def test_between_the_thresholds_is_ignored():
    overlaps = [[0.9, 0.5, 0.69999, 0.29999]]
    assert assign(EVAMaxIoUAssigner, overlaps)[0] == [1, -1, -1, 0]


def test_no_ground_truth_means_background():
    result = EVAMaxIoUAssigner(**RPN).assign_wrt_overlaps(torch.zeros(0, 3), torch.zeros(0).long())
    assert result.gt_inds.tolist() == [0, 0, 0]


def test_sizes_are_clamped_from_above_only():
    box = torch.tensor([[0.0, 0.0, 100.0, 100.0]])
    shrink = torch.tensor([[0.0, 0.0, math.log(1 / 500), math.log(1 / 500)]])
    grow = -shrink
    ours, stock = EVADeltaXYWHBBoxCoder(), DeltaXYWHBBoxCoder()
    sides = lambda coder, d: float((coder.decode(box, d)[0, 2:] - coder.decode(box, d)[0, :2])[0])  # noqa: E731
    assert sides(ours, shrink) == pytest.approx(0.2, rel=1e-4)
    assert sides(stock, shrink) == pytest.approx(1.6, rel=1e-4)
    assert sides(ours, grow) == pytest.approx(100 * 62.5, rel=1e-4)


def test_decoding_inverts_encoding():
    coder = EVADeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2))
    torch.manual_seed(0)
    corner = torch.rand(20, 2, 2) * 50
    boxes = torch.cat((corner[:, 0], corner[:, 0] + 5 + corner[:, 1]), dim=1)
    targets = boxes.roll(1, dims=0)
    decoded = coder.decode(boxes, coder.encode(boxes, targets))
    assert torch.allclose(decoded, targets, atol=1e-3)
    assert torch.equal(
        coder.decode(boxes, coder.encode(boxes, targets), max_shape=(30, 40)),
        clip_boxes(decoded, (30, 40)),
    )


def test_boxes_are_clipped_to_width_and_height():
    boxes = torch.tensor([[-5.0, -1.0, 50.0, 60.0], [41.0, 3.0, 45.0, 8.0]])
    clipped = clip_boxes(boxes, (30, 40))
    assert clipped.tolist() == [[0, 0, 40, 30], [40, 3, 40, 8]]
    assert nonempty(clipped).tolist() == [True, False]
