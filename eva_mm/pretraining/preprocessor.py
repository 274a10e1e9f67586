"""Images of a batch onto the device, normalised as CLIP's are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor

from eva_mm.errors import InputError

# Images of a batch; the teacher's is there where it has another size.
IMAGE_KEYS = ('image', 'teacher_image')
# What the model has no use for; it stays in the batch for messages about the data.
NOT_FOR_THE_MODEL = ('img_path',)
# What is used on the CPU, so that no device is waited for.
KEPT_ON_CPU = ('cache_slot',)


@MODELS.register_module()
class PretrainDataPreprocessor(BaseDataPreprocessor):
    """Moves a collated batch to the device and normalises its images in fp32.

    Student and teacher see the same normalisation, that of OpenAI's CLIP by default
    (EVA-01/eva/datasets.py).

    Args:
        mean: of the three channels, RGB, in [0, 1].
        std: likewise.
        non_blocking: as of :class:`mmengine.model.BaseDataPreprocessor`.
    """

    def __init__(
        self,
        mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        non_blocking: bool = False,
    ):
        super().__init__(non_blocking)
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), persistent=False)

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 RGB (B, 3, H, W) -> float32, (x / 255 - mean) / std."""
        return (image.float() / 255 - self.mean) / self.std

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Batch of the data loader -> arguments of the model's ``forward``.

        Raises:
            InputError: the batch has masks, none of which hides a patch.
        """
        # Here, where masks are on the CPU, so that no device is waited for.
        if 'mask' in data and not data['mask'].any():
            raise InputError(
                f'masks of shape {tuple(data["mask"].shape)} hide no patch: nothing to predict '
                f'(check the mask in dataset.pipeline)'
            )
        batch = {k: v for k, v in data.items() if k not in NOT_FOR_THE_MODEL}
        kept = {key: batch.pop(key) for key in KEPT_ON_CPU if key in batch}
        batch = {**self.cast_data(batch), **kept}
        for key in IMAGE_KEYS:
            if key in batch:
                batch[key] = self.normalise(batch[key])
        return batch
