"""Small layers of the published detector."""

import torch.nn as nn
from mmdet.registry import MODELS
from torch import Tensor
from torchvision.models.convnext import LayerNorm2d

# The channel-first layer normalisation that detectron2 calls "LN", for norm_cfg entries.
MODELS.register_module('EVALN2d', module=LayerNorm2d)
LN2D_CFG = dict(type='EVALN2d', eps=1e-6)


class ConvLN(nn.Conv2d):
    """Convolution without bias followed by ``norm``, a channel-first layer normalisation.

    The normalisation is a child of the convolution, as in the published parameter names
    (``simfp_2.4.weight``, ``simfp_2.4.norm.weight``).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.norm = LayerNorm2d(out_channels, eps=LN2D_CFG['eps'])

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))
