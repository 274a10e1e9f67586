"""The simple feature pyramid of ViTDet (arXiv 2203.16527), with the published parameter names."""

import math
from collections.abc import Sequence

import torch.nn as nn
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor

from .layers import ConvLN, LayerNorm2d


def _rescaling(in_channels: int, scale: float) -> tuple[list[nn.Module], int]:
    """Layers that rescale a map, and the channels that come out."""
    half, quarter = in_channels // 2, in_channels // 4
    if scale == 4:
        layers = [
            nn.ConvTranspose2d(in_channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        ]
        return layers, quarter
    if scale == 2:
        return [nn.ConvTranspose2d(in_channels, half, 2, stride=2)], half
    if scale == 1:
        return [], in_channels
    if scale == 0.5:
        return [nn.MaxPool2d(2)], in_channels
    raise ValueError(f'scale_factors may hold 4, 2, 1 and 0.5, got {scale}')


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Pyramid levels from one map, each rescaled on its own.

    Args:
        in_channels: channels of the backbone's map.
        out_channels: channels of every level.
        scale_factors: of the levels relative to the input map, finest first; (4, 2, 1, 0.5)
            makes p2-p5 of a stride-16 map.
        num_outs: levels in all; those beyond ``scale_factors`` subsample the last one by 2
            (p6 of the published detector; p6 and p7 for RetinaNet).
        in_stride: stride of the input map in pixels; it names the stages (``simfp_2`` has
            stride 2²).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scale_factors: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int = 5,
        in_stride: int = 16,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
        if num_outs < len(scale_factors):
            raise ValueError(
                f'num_outs={num_outs} is less than the {len(scale_factors)} scale_factors'
            )
        self.num_outs = num_outs
        self.stage_names = []
        for scale in scale_factors:
            layers, channels = _rescaling(in_channels, scale)
            layers += [ConvLN(channels, out_channels, 1), ConvLN(out_channels, out_channels, 3)]
            name = f'simfp_{int(math.log2(in_stride / scale))}'
            self.add_module(name, nn.Sequential(*layers))
            self.stage_names.append(name)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """(map (B, C, h, w),) -> ``num_outs`` maps, finest first."""
        if len(inputs) != 1:
            raise ValueError(f'SimpleFeaturePyramid takes one map, got {len(inputs)}')
        levels = [getattr(self, name)(inputs[0]) for name in self.stage_names]
        while len(levels) < self.num_outs:
            levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        # mmcv's RoIAlign reads memory as if it were contiguous; a map in channels_last layout
        # would come out wrong without any error.
        return tuple(level.contiguous() for level in levels)
