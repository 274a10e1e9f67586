"""Federated loss for LVIS (CenterNet2, arXiv 2103.07461), as EVA's detector uses it."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class FederatedLoss(nn.Module):
    """Sigmoid cross-entropy over a sampled subset of the classes.

    The subset holds the classes that occur among the boxes and is filled up to
    ``num_sampled_classes`` by sampling without replacement with probability proportional to
    ``image_count ** frequency_power``. Background takes one of the places when some box is
    background (EVA-01/det/detectron2/modeling/roi_heads/fast_rcnn.py). Every box counts for every
    kept class.

    Args:
        num_classes: foreground classes K.
        num_sampled_classes: places in the subset.
        frequency_power: exponent of the image counts.
        class_image_counts: training images per class. None: a hook
            (:class:`~eva_mm.detection.hooks.FederatedClassCountsHook`) takes them from the
            training set.
        loss_weight: factor of the loss.

    Raises:
        ValueError: in training, when no image counts were ever given.
    """

    # Tell mmdet's box heads to ask this loss for scores and accuracy.
    custom_activation = True

    def __init__(
        self,
        num_classes: int,
        num_sampled_classes: int = 50,
        frequency_power: float = 0.5,
        class_image_counts: Sequence[float] | None = None,
        loss_weight: float = 1.0,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.num_sampled_classes = num_sampled_classes
        self.frequency_power = frequency_power
        self.loss_weight = loss_weight
        self.register_buffer('fed_loss_cls_weights', torch.zeros(num_classes))
        if class_image_counts is not None:
            self.set_class_image_counts(class_image_counts)

    def set_class_image_counts(self, counts: Sequence[float]) -> None:
        """Set the sampling weights from the number of training images of each class.

        Raises:
            ValueError: as many counts as classes are needed.
        """
        if len(counts) != self.num_classes:
            raise ValueError(
                f'image counts of {len(counts)} classes given for num_classes={self.num_classes}'
            )
        weights = torch.as_tensor(counts, dtype=torch.float32) ** self.frequency_power
        self.fed_loss_cls_weights.copy_(weights)

    @torch.no_grad()
    def sample_classes(self, labels: Tensor) -> Tensor:
        """Labels (N,), background = K -> the foreground classes that take part, in any order."""
        present = labels.unique()
        foreground = present[present < self.num_classes]
        vacant = self.num_sampled_classes - len(present)
        if vacant <= 0:
            return foreground
        weights = self.fed_loss_cls_weights.clone()
        if not torch.count_nonzero(weights):
            raise ValueError(
                'FederatedLoss knows no image counts to sample classes by: set class_image_counts, '
                "or add custom_hooks = [dict(type='FederatedClassCountsHook')]"
            )
        weights[foreground] = 0
        vacant = min(vacant, int(torch.count_nonzero(weights)))
        if vacant == 0:
            return foreground
        return torch.cat((foreground, torch.multinomial(weights, vacant)))

    def forward(
        self,
        cls_score: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Logits (N, K + 1), of which the last is unused, and labels (N,) -> scalar.

        ``weight`` and ``reduction_override`` are part of mmdet's interface and have no use here;
        ``avg_factor`` is the number of boxes N unless given.
        """
        classes = self.sample_classes(label)
        target = F.one_hot(label, self.num_classes + 1)[:, classes].to(cls_score.dtype)
        loss = F.binary_cross_entropy_with_logits(cls_score[:, classes], target, reduction='sum')
        return self.loss_weight * loss / max(avg_factor or len(label), 1)

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Logits (N, K + 1) -> scores of the same shape."""
        return cls_score.sigmoid()

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Percentage of the foreground boxes whose best class is right."""
        foreground = labels < self.num_classes
        best = cls_score[:, : self.num_classes].argmax(dim=1)
        hits = (best == labels)[foreground].float()
        return dict(acc_classes=100 * hits.sum() / max(len(hits), 1))
