"""Box coding and anchor matching as published, where stock mmdet differs."""

import math

import torch
from mmdet.models.task_modules import AssignResult, DeltaXYWHBBoxCoder, MaxIoUAssigner
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import HorizontalBoxes, get_box_tensor
from torch import Tensor


@TASK_UTILS.register_module()
class EVADeltaXYWHBBoxCoder(DeltaXYWHBBoxCoder):
    """Box deltas whose log sizes are clamped from above only.

    mmdet clamps them on both sides, so a box could not shrink by more than a factor 62.5
    (EVA-01/det/detectron2/modeling/box_regression.py has the upper bound alone).
    """

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
        deltas = pred_bboxes.reshape(-1, 4) * pred_bboxes.new_tensor(self.stds)
        deltas = deltas + pred_bboxes.new_tensor(self.means)
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

    def assign_wrt_overlaps(self, overlaps: Tensor, gt_labels: Tensor) -> AssignResult:
        """IoU (ground truths, boxes) and labels (ground truths,) -> assignment of the boxes."""
        match_low_quality, self.match_low_quality = self.match_low_quality, False
        result = super().assign_wrt_overlaps(overlaps, gt_labels)
        self.match_low_quality = match_low_quality
        if match_low_quality and overlaps.numel():
            best = overlaps.max(dim=1, keepdim=True).values
            tied = ((overlaps == best) & (best >= self.min_pos_iou)).any(dim=0)
            own_best = overlaps.argmax(dim=0)
            result.gt_inds[tied] = own_best[tied] + 1
            result.labels[tied] = gt_labels[own_best[tied]]
        return result
