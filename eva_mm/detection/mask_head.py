"""Mask targets as published: polygons rasterised at the head's resolution, boxes not clipped."""

import numpy as np
import pycocotools.mask as mask_utils
import torch
from mmcv.cnn.bricks.wrappers import Conv2d
from mmdet.models import FCNMaskHead
from mmdet.registry import MODELS
from mmdet.structures.mask import BaseInstanceMasks, PolygonMasks
from mmengine.config import ConfigDict
from torch import Tensor

PLAIN_PREDICTORS = (torch.nn.Conv2d, Conv2d)  # mmcv's is torch's, mended for old versions of it


def rasterize_in_box(polygons: list[np.ndarray], box: np.ndarray, size: int) -> np.ndarray:
    """Rasterise the union of polygons inside a box.

    Args:
        polygons: parts, each flat (x0, y0, x1, y1, ...) in pixels.
        box: xyxy in pixels. Sides are floored at 0.1 px
            (EVA-01/det/detectron2/structures/masks.py).
        size: side of the result.

    Returns:
        (size, size) bool.
    """
    width, height = np.maximum(box[2:] - box[:2], 0.1)
    scale = np.array([size / width, size / height])
    parts = [((np.reshape(p, (-1, 2)) - box[:2]) * scale).flatten().tolist() for p in polygons]
    parts = [part for part in parts if len(part) >= 6]
    if not parts:
        return np.zeros((size, size), dtype=bool)
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(parts, size, size))) > 0


def mask_targets_in_boxes(
    boxes: Tensor, masks: BaseInstanceMasks, instances: Tensor, size: int
) -> Tensor:
    """Mask targets of boxes.

    Polygons are rasterised, bitmaps go through RoIAlign and are cut at 0.5. mmdet clips the boxes
    to the mask's canvas first and floors polygon boxes at 1 px; this does neither.

    Args:
        boxes: (n, 4), xyxy in pixels of the masks.
        masks: ground truth of the image.
        instances: (n,) long, the ground truth of each box.
        size: side of the targets.

    Returns:
        (n, size, size) float32 of 0 and 1, on the device of ``boxes``.
    """
    if len(boxes) == 0:
        return boxes.new_zeros(0, size, size)
    boxes_np = boxes.detach().double().cpu().numpy()
    indices = instances.cpu().numpy()
    if isinstance(masks, PolygonMasks):
        targets = np.stack(
            [rasterize_in_box(masks.masks[i], box, size) for i, box in zip(indices, boxes_np)]
        )
    else:
        targets = masks.crop_and_resize(
            boxes_np.astype(np.float32), (size, size), indices, device=boxes.device
        ).to_ndarray()
    return torch.from_numpy(np.ascontiguousarray(targets)).to(boxes.device, torch.float32)


@MODELS.register_module()
class EVAMaskHead(FCNMaskHead):
    """mmdet's convolutional mask head with published targets and initialisation.

    The last layer starts from a normal distribution of std 0.001
    (EVA-01/det/detectron2/modeling/roi_heads/mask_head.py). Loss and masks of a box depend on one
    class, so that the maps of the others need not be computed: LVIS has 1203.
    """

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pooled features -> mask logits.

        Args:
            x: (n, C, s, s).
            labels: (n,) long, the class of each box; None gives the maps of all K classes.

        Returns:
            (n, K, 2s, 2s), or (n, 1, 2s, 2s) with labels.
        """
        if labels is None or self.class_agnostic:
            return super().forward(x)
        predictor = self.conv_logits
        if type(predictor) not in PLAIN_PREDICTORS or predictor.kernel_size != (1, 1):
            chosen = torch.arange(len(labels), device=labels.device), labels
            return super().forward(x)[chosen][:, None]
        for conv in self.convs:
            x = conv(x)
        if self.upsample is not None:
            x = self.upsample(x)
            if self.upsample_method == 'deconv':
                x = self.relu(x)
        logits = torch.einsum('nchw,nc->nhw', x, predictor.weight[labels].flatten(1))
        return (logits + predictor.bias[labels, None, None])[:, None]

    def init_weights(self) -> None:
        """Initialise as the base class, then the predictor."""
        super().init_weights()
        torch.nn.init.normal_(self.conv_logits.weight, std=0.001)

    def get_targets(
        self, sampling_results: list, batch_gt_instances: list, rcnn_train_cfg: ConfigDict
    ) -> Tensor:
        """Targets (positives of the batch, mask_size, mask_size) of the sampled proposals."""
        targets = [
            mask_targets_in_boxes(
                result.pos_priors,
                instances.masks,
                result.pos_assigned_gt_inds,
                rcnn_train_cfg.mask_size,
            )
            for result, instances in zip(sampling_results, batch_gt_instances)
        ]
        return torch.cat(targets)

    def loss_of_class(
        self,
        logits: Tensor,
        sampling_results: list,
        batch_gt_instances: list,
        rcnn_train_cfg: ConfigDict,
    ) -> Tensor:
        """Loss of the logits (n, 1, s, s) of each positive proposal's class: a number."""
        targets = self.get_targets(sampling_results, batch_gt_instances, rcnn_train_cfg)
        if len(logits) == 0:
            return logits.sum()
        return self.loss_mask(logits, targets, logits.new_zeros(len(logits), dtype=torch.long))
