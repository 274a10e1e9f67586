"""Mask2Former's head with the published way to a semantic map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmseg.models import Mask2FormerHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

from eva_mm.errors import InputError

MASK_STRIDE = 4


@MODELS.register_module()
class EVAMask2FormerHead(Mask2FormerHead):
    """mmseg's Mask2Former head, whose map may be made as EVA's segmentors make it.

    Losses and assignment are those of mmseg, which equal the published ones: class loss over the
    summed class weights, mask and dice loss over the mean number of masks of a process, one at
    least. The map has the size of the image that the features are of, so that
    crops of any size may slide over an image.

    Args:
        sigmoid_before_upsampling: combine mask *probabilities* of stride 4 with the class
            probabilities, then enlarge the map (published; EVA-01/seg). False enlarges the mask
            logits first, as mmseg does.
        count_empty_images: let an image without any class count as one mask in the number that
            mask and dice loss are divided by, as mmdet 3 does; it counts none as published
            (mmdet 2.22).
        **kwargs: see :class:`mmseg.models.Mask2FormerHead`.

    Raises:
        InputError: ``loss_cls.class_weight`` has another length than classes and void.
    """

    def __init__(
        self, *, sigmoid_before_upsampling: bool = True, count_empty_images: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        if len(self.class_weight or ()) not in (0, self.num_classes + 1):
            raise InputError(
                f'decode_head.loss_cls.class_weight has {len(self.class_weight)} numbers, but '
                f'num_classes is {self.num_classes}: expected {self.num_classes + 1}, the last one '
                f'for no object'
            )
        self.sigmoid_before_upsampling = sigmoid_before_upsampling
        self.count_empty_images = count_empty_images

    def get_targets(self, *args, **kwargs) -> tuple:
        """mmdet's targets, of which the fifth is the number of masks."""
        labels, *targets = super().get_targets(*args, **kwargs)
        if not self.count_empty_images:
            targets[3] = int(sum((found != self.num_classes).sum() for found in labels))
        return labels, *targets

    def predict(self, x: tuple[Tensor, ...], batch_img_metas: list[dict], test_cfg: dict) -> Tensor:
        """Features of the strides 4 to 32 -> scores (B, classes, H, W), each in [0, queries]."""
        samples = [SegDataSample(metainfo=meta) for meta in batch_img_metas]
        all_classes, all_masks = self(x, samples)
        return self.combine(all_classes[-1], all_masks[-1])

    def combine(self, cls_logits: Tensor, mask_logits: Tensor) -> Tensor:
        """Queries' logits -> map of class scores.

        Args:
            cls_logits: (B, queries, classes + 1), the last one for no object.
            mask_logits: (B, queries, H / 4, W / 4).

        Returns:
            (B, classes, H, W).
        """
        classes = cls_logits.softmax(dim=-1)[..., :-1]
        if not self.sigmoid_before_upsampling:
            mask_logits = _enlarged(mask_logits)
        scores = torch.einsum('bqc,bqhw->bchw', classes, mask_logits.sigmoid())
        return _enlarged(scores) if self.sigmoid_before_upsampling else scores


def _enlarged(maps: Tensor) -> Tensor:
    size = [MASK_STRIDE * side for side in maps.shape[-2:]]
    return F.interpolate(maps, size=size, mode='bilinear', align_corners=False)
