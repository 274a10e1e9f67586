"""Mixup and CutMix of clips, as in the Kinetics-722 run."""

import torch
from mmaction.models.utils import BaseMiniBatchBlending, CutmixBlending, MixupBlending
from mmaction.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class MixupOrCutmix(BaseMiniBatchBlending):
    """mmaction2's CutMix on some batches and its Mixup on the others.

    Its own ``RandomBatchAugment`` does the same, but cannot be built on the meta device, as a dry
    run does, and changes its config, so that a second model cannot be built of it.
    Source: EVA-01/video/datasets/blending.py.

    Args:
        num_classes: K.
        mixup, cutmix: parameters of the Beta distributions; above 0.
        cutmix_prob: share of the batches that CutMix takes.

    Raises:
        ValueError: a parameter or a share out of range.
    """

    def __init__(
        self,
        num_classes: int,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        cutmix_prob: float = 0.5,
    ):
        super().__init__(num_classes)
        if min(mixup, cutmix) <= 0 or not 0 <= cutmix_prob <= 1:
            raise ValueError(
                f'mixup and cutmix should be above 0 and cutmix_prob within [0, 1], got {mixup}, '
                f'{cutmix} and {cutmix_prob}'
            )
        self.mixup = mixup
        self.cutmix = cutmix
        self.cutmix_prob = cutmix_prob

    def do_blending(self, imgs: Tensor, label: Tensor, **kwargs) -> tuple[Tensor, Tensor]:
        """Clips (B, N, C, T, H, W) and one-hot labels (B, K) -> the same shapes, labels soft."""
        if torch.rand(()) < self.cutmix_prob:
            blending = CutmixBlending(self.num_classes, self.cutmix)
        else:
            blending = MixupBlending(self.num_classes, self.mixup)
        return blending.do_blending(imgs, label, **kwargs)
