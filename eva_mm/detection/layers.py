"""Small layers of the published detector."""

import torch
import torch.nn as nn
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module('EVALN2d')
class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W), for ``norm_cfg`` entries.

    Written out on the channel axis as the published code does
    (EVA-01/det/detectron2/layers/batch_norm.py), not through ``F.layer_norm`` on a permuted copy:
    the sums then round alike, and units at the kink of a ReLU fall on the same side. It also keeps
    the memory layout.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6):
        super().__init__(num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(dim=1, keepdim=True)
        x = x / torch.sqrt(x.pow(2).mean(dim=1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvLN(nn.Conv2d):
    """Convolution without bias followed by ``norm``, a channel-first layer normalisation.

    The normalisation is a child of the convolution, as in the published parameter names
    (``simfp_2.4.weight``, ``simfp_2.4.norm.weight``).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.norm = LayerNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))
