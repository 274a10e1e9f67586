"""Transforms of single images, from timm where it has them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.registry import TRANSFORMS
from PIL import Image
from timm.data import create_transform
from timm.data.constants import OPENAI_CLIP_MEAN
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from eva_mm.errors import InputError


@TRANSFORMS.register_module()
class TimmTransform:
    """timm's training or evaluation transform up to a uint8 tensor; normalisation comes later.

    Args:
        size: side of the result in pixels.
        is_training: random resized crop, flip and RandAugment, or resize and centre crop.
        interpolation: of all resizing.
        **kwargs: of :func:`timm.data.create_transform`: ``scale``, ``ratio``, ``hflip``,
            ``auto_augment``, ``color_jitter`` (without RandAugment only), ``crop_pct`` ...; not
            ``re_prob``.

    Raises:
        InputError: random erasing is asked for, which needs normalised images.
    """

    def __init__(
        self, size: int, is_training: bool = False, interpolation: str = 'bicubic', **kwargs: Any
    ):
        if kwargs.get('re_prob'):
            raise InputError(
                f're_prob={kwargs["re_prob"]}: random erasing is not done here, since timm erases '
                f'after normalisation, which is of whole batches; no published run erases'
            )
        # The mean fills what RandAugment's rotations and translations uncover.
        kwargs.setdefault('mean', OPENAI_CLIP_MEAN)
        self.transform = create_transform(
            size, is_training=is_training, interpolation=interpolation, normalize=False, **kwargs
        )

    def __call__(self, results: dict) -> dict:
        """``image``: PIL RGB -> uint8 (3, size, size)."""
        results['image'] = self.transform(results['image'])
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.transform})'


@TRANSFORMS.register_module()
class CropWithoutRetry(RandomResizedCrop):
    """Random resized crop of the linear probe: sides that exceed the image are cut to it.

    torchvision's and timm's draw again instead. Source: github.com/baaivision/EVA,
    EVA-01/eva/datasets.py, after BYOL's (arXiv 2006.07733).

    Args:
        size: side of the result in pixels.
        scale: range of the share of the image's area.
        ratio: range of width over height, log-uniform.
        interpolation: of resizing.
    """

    def __init__(
        self,
        size: int,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        interpolation: str = 'bicubic',
    ):
        super().__init__(size, tuple(scale), tuple(ratio), InterpolationMode(interpolation))

    @staticmethod
    def get_params(
        img: Image.Image, scale: Sequence[float], ratio: Sequence[float]
    ) -> tuple[int, int, int, int]:
        """Draw (top, left, height, width) in pixels."""
        _, height, width = F.get_dimensions(img)
        area = height * width * torch.empty(1).uniform_(*scale).item()
        low, high = torch.log(torch.tensor(ratio))
        aspect = math.exp(torch.empty(1).uniform_(float(low), float(high)).item())
        w = min(round(math.sqrt(area * aspect)), width)
        h = min(round(math.sqrt(area / aspect)), height)
        top = torch.randint(0, height - h + 1, (1,)).item()
        left = torch.randint(0, width - w + 1, (1,)).item()
        return top, left, h, w

    def forward(self, results: dict) -> dict:
        """``image``: PIL RGB -> PIL RGB of ``size``."""
        results['image'] = super().forward(results['image'])
        return results


@TRANSFORMS.register_module()
class FlipToTensor:
    """Horizontal flip, then PIL RGB -> uint8 (3, H, W).

    Args:
        prob: of the flip.
    """

    def __init__(self, prob: float = 0.5):
        self.prob = prob

    def __call__(self, results: dict) -> dict:
        """``image``: PIL RGB -> uint8 (3, H, W)."""
        image = results['image']
        if torch.rand(1).item() < self.prob:
            image = F.hflip(image)
        results['image'] = F.pil_to_tensor(image)
        return results
