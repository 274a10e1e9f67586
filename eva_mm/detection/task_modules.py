"""Box coding and anchor matching as published, where stock mmdet differs."""

import math

import torch
from mmdet.models.task_modules import (
    AssignResult,
    DeltaXYWHBBoxCoder,
    MaxIoUAssigner,
)
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import HorizontalBoxes, get_box_tensor
from torch import Tensor


@TASK_UTILS.register_module()
class EVADeltaXYWHBBoxCoder(DeltaXYWHBBoxCoder):
    """Box deltas whose log sizes are clamped from above only, in the published arithmetic.

    mmdet clamps them on both sides, so a box could not shrink by more than a factor 62.5
    (EVA-01/det/detectron2/modeling/box_regression.py has the upper bound alone). Deltas are
    multiplied and divided by the published weights, the inverse of ``target_stds``, so that refined
    boxes round as the authors' do. ``target_means`` must be 0.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if any(self.means):
            raise ValueError(f'target_means should be 0, got {self.means}')

    def _weights(self, like: Tensor) -> Tensor:
        return like.new_tensor([1 / std for std in self.stds])

    def encode(self, bboxes, gt_bboxes) -> Tensor:
        """Deltas (N, 4) that turn ``bboxes`` (N, 4) into ``gt_bboxes`` (N, 4), xyxy."""
        source, target = get_box_tensor(bboxes), get_box_tensor(gt_bboxes)
        size, target_size = source[:, 2:] - source[:, :2], target[:, 2:] - target[:, :2]
        shift = (target[:, :2] + 0.5 * target_size) - (source[:, :2] + 0.5 * size)
        weights = self._weights(source)
        return torch.cat(
            (weights[:2] * shift / size, weights[2:] * torch.log(target_size / size)), dim=1
        )

    def decode(self, bboxes, pred_bboxes: Tensor, max_shape=None, wh_ratio_clip=16 / 1000):
        """Boxes (N, 4) and deltas (N, 4 * k) -> boxes (N, 4 * k), xyxy, clipped to max_shape.

        Args:
            bboxes: reference boxes, xyxy in pixels.
            pred_bboxes: deltas (dx, dy, dw, dh).
            max_shape: (height, width) to clip to; None leaves the boxes as they are.
            wh_ratio_clip: sizes grow at most by its inverse.
        """
        boxes = get_box_tensor(bboxes)
        repeats = pred_bboxes.shape[-1] // 4
        deltas = pred_bboxes.reshape(-1, 4) / self._weights(pred_bboxes)
        boxes = boxes.repeat_interleave(repeats, dim=0)
        size = boxes[:, 2:] - boxes[:, :2]
        centre = boxes[:, :2] + 0.5 * size + deltas[:, :2] * size
        half = 0.5 * size * deltas[:, 2:].clamp(max=-math.log(wh_ratio_clip)).exp()
        decoded = torch.cat((centre - half, centre + half), dim=1)
        if self.clip_border and max_shape is not None:
            decoded = clip_boxes(decoded, max_shape)
        decoded = decoded.reshape(pred_bboxes.shape)
        return HorizontalBoxes(decoded) if self.use_box_type else decoded


def clip_boxes(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Clip boxes (N, 4), xyxy in pixels, to an image of (height, width)."""
    limits = boxes.new_tensor([shape[1], shape[0], shape[1], shape[0]])
    return torch.minimum(boxes.clamp(min=0), limits)


def nonempty(boxes: Tensor) -> Tensor:
    """Which boxes (N, 4), xyxy, have both sides above zero: (N,) bool."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


@TASK_UTILS.register_module()
class EVAMaxIoUAssigner(MaxIoUAssigner):
    """Anchor matching whose low-quality rule keeps each anchor's own best ground truth.

    With ``match_low_quality`` every anchor tied for the best IoU of some ground truth becomes
    positive, however small that IoU is, but its regression target stays the ground truth that the
    anchor itself overlaps most. Stock mmdet reassigns the anchor to the ground truth instead
    (EVA-01/det/detectron2/modeling/matcher.py).
    """

    def __init__(self, *args, match_low_quality: bool = True, **kwargs):
        super().__init__(*args, match_low_quality=False, **kwargs)
        self.low_quality = match_low_quality

    def assign_wrt_overlaps(self, overlaps: Tensor, gt_labels: Tensor) -> AssignResult:
        """IoU (ground truths, boxes) and labels (ground truths,) -> assignment of the boxes."""
        result = super().assign_wrt_overlaps(overlaps, gt_labels)
        if self.low_quality and overlaps.numel():
            best = overlaps.max(dim=1, keepdim=True).values
            tied = ((overlaps == best) & (best >= self.min_pos_iou)).any(dim=0)
            own_best = overlaps.argmax(dim=0)
            result.gt_inds[tied] = own_best[tied] + 1
            result.labels[tied] = gt_labels[own_best[tied]]
        return result
