"""Normalisation and mixing of a batch, on the model's device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from timm.data import Mixup
from timm.data.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from eva_mm.errors import InputError


@MODELS.register_module()
class ClassificationDataPreprocessor(BaseDataPreprocessor):
    """Turns uint8 images into normalised fp32 ones and, in training, mixes them.

    Images are mixed after normalisation, and random numbers are numpy's, as published
    (github.com/baaivision/EVA, EVA-01/eva/run_class_finetuning.py).

    Args:
        mean: of each channel (RGB), for values in [0, 1]; CLIP's by default.
        std: likewise.
        mixup: arguments of :class:`timm.data.Mixup` (``mixup_alpha``, ``cutmix_alpha``,
            ``label_smoothing``, ``num_classes`` ...); None mixes nothing.
        non_blocking: of the copy to the device.

    Raises:
        InputError: mixing is asked for with both alphas 0, or of an odd number of images.
    """

    def __init__(
        self,
        mean: Sequence[float] = OPENAI_CLIP_MEAN,
        std: Sequence[float] = OPENAI_CLIP_STD,
        mixup: Mapping[str, Any] | None = None,
        non_blocking: bool = True,
    ):
        super().__init__(non_blocking)
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.mixup = None if mixup is None else Mixup(**mixup)
        if self.mixup and not (self.mixup.mixup_alpha > 0 or self.mixup.cutmix_alpha > 0):
            raise InputError(
                'data_preprocessor.mixup needs mixup_alpha or cutmix_alpha above 0; mixup=None '
                'mixes nothing'
            )

    def forward(self, data: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        """Prepare a collated batch.

        Args:
            data: ``image`` (B, 3, H, W) uint8 RGB; ``label`` (B,) and what else there is.
            training: whether to mix.

        Returns:
            The same keys: ``image`` fp32; ``label`` (B, K) fp32 when mixed.
        """
        data = dict(self.cast_data(data))
        data['image'] = data['image'].float().div(255).sub_(self.mean).div_(self.std)
        if training and self.mixup:
            if len(data['image']) % 2:
                raise InputError(
                    f'mixing pairs the images of a batch, but train_dataloader.batch_size is '
                    f'{len(data["image"])}: make it even'
                )
            data['image'], data['label'] = self.mixup(data['image'], data['label'])
        return data
