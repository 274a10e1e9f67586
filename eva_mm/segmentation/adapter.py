"""Parts that ViT-Adapter puts around a plain ViT: spatial prior, injectors, extractors.

Paper: Vision Transformer Adapter for Dense Predictions, arXiv 2205.08534. Values and names are
those of github.com/baaivision/EVA, EVA-01/seg/mmseg_custom/models/backbones/adapter_modules.py.

Shape letters: B batch, D width, N = h * w tokens of stride 16, M tokens of the strides 8, 16 and
32, in this order (M = 4 N + N + N / 4).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from torch import Tensor, nn

from eva_mm.vit import DropPath, Grid

NORM_EPS = 1e-6


def norm2d(norm_cfg: dict, width: int) -> nn.Module:
    """A normalisation of maps from mmcv's registry."""
    return build_norm_layer(norm_cfg, width)[1]


def pyramid_grids(grid: Grid) -> list[Grid]:
    """Grids of the strides 8, 16 and 32, from that of stride 16."""
    h, w = grid
    return [(2 * h, 2 * w), (h, w), (h // 2, w // 2)]


class Geometry(NamedTuple):
    """Where queries look, and how the features are laid out.

    Attributes:
        points: (1, queries, 1, 2) centres of the queries' cells as x, y in [0, 1].
        extents: (levels, 1, 2) width and height of each level of the features.
        grids: (height, width) of each level.
        shapes: (levels, 2) the same on the device.
        starts: (levels,) index of each level's first token.
    """

    points: Tensor
    extents: Tensor
    grids: tuple[Grid, ...]
    shapes: Tensor
    starts: Tensor

    @classmethod
    def of(cls, queries: Sequence[Grid], features: Sequence[Grid], device) -> Geometry:
        """Geometry of queries on some grids that look at features on others."""
        areas = [h * w for h, w in features]
        extents = [[[float(w), float(h)]] for h, w in features]
        return cls(
            torch.cat([_centres(grid, device) for grid in queries], 1),
            torch.tensor(extents, device=device),
            tuple(features),
            torch.tensor(features, dtype=torch.long, device=device),
            torch.tensor([sum(areas[:i]) for i in range(len(areas))], device=device),
        )


def _centres(grid: Grid, device) -> Tensor:
    """(1, h * w, 1, 2): centres of the cells of a grid, row by row."""
    y, x = ((torch.arange(side, device=device) + 0.5) / side for side in grid)
    y, x = torch.meshgrid(y, x, indexing='ij')
    return torch.stack((x, y), dim=-1).reshape(1, -1, 1, 2)


class DeformableAttention(MultiScaleDeformableAttention):
    """mmcv's layer, for features whose sizes are known as numbers.

    mmcv's own forward compares sizes on the device, which makes the host wait for it, and which a
    reckoning with shapes alone (``--dry-run``) cannot answer.
    """

    def forward(self, query: Tensor, value: Tensor, geometry: Geometry) -> Tensor:
        """(B, queries, D) and (B, tokens, D) -> (B, queries, D), without the identity."""
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        value = self.value_proj(value).unflatten(-1, (heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (heads, levels, points, 2))
        weights = self.attention_weights(query).unflatten(-1, (heads, levels * points))
        weights = weights.softmax(-1).unflatten(-1, (levels, points))
        places = geometry.points[:, :, None, :, None] + offsets / geometry.extents
        if value.is_cuda and value.dtype != torch.bfloat16:  # which the operator does not take
            found = MultiScaleDeformableAttnFunction.apply(
                value, geometry.shapes, geometry.starts, places, weights, self.im2col_step
            )
        else:
            found = multi_scale_deformable_attn_pytorch(value, geometry.grids, places, weights)
        return self.output_proj(found)


class CrossAttention(nn.Module):
    """Deformable attention of normalised queries to normalised features.

    Args:
        dim: width D.
        num_heads: heads.
        num_levels: levels of the features.
        num_points: samples per head, level and query.
        value_ratio: width of the values over D.
    """

    def __init__(
        self, dim: int, num_heads: int, num_levels: int, num_points: int, value_ratio: float
    ):
        super().__init__()
        self.query_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.feat_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        with warnings.catch_warnings():
            # The published width per head, 88, is no power of two; mmcv calls that slow.
            warnings.simplefilter('ignore', UserWarning)
            self.attn = DeformableAttention(
                embed_dims=dim,
                num_heads=num_heads,
                num_levels=num_levels,
                num_points=num_points,
                dropout=0.0,
                batch_first=True,
                value_proj_ratio=value_ratio,
            )

    def attend(self, query: Tensor, feature: Tensor, geometry: Geometry) -> Tensor:
        """(B, queries, D) and (B, tokens, D) -> (B, queries, D), without the identity."""
        return self.attn(self.query_norm(query), self.feat_norm(feature), geometry)


class Injector(CrossAttention):
    """Adds what ViT tokens find in the three levels, times a ``gamma`` that starts at zero."""

    def __init__(self, dim: int, num_heads: int, num_points: int, value_ratio: float):
        super().__init__(dim, num_heads, 3, num_points, value_ratio)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, levels: Tensor, geometry: Geometry) -> Tensor:
        """Tokens (B, N, D) and levels (B, M, D) -> tokens (B, N, D)."""
        return x + self.gamma * self.attend(x, levels, geometry)


class LevelwiseConv(nn.Module):
    """Depthwise 3 x 3 convolution, shared by the three levels."""

    def __init__(self, dim: int):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(B, M, dim) -> (B, M, dim)."""
        outputs = []
        for level, (h, w) in zip(x.split([h * w for h, w in grids], dim=1), grids):
            maps = level.transpose(1, 2).reshape(len(x), -1, h, w)
            outputs.append(self.dwconv(maps).flatten(2).transpose(1, 2))
        return torch.cat(outputs, dim=1)


class ConvFFN(nn.Module):
    """Feed-forward layer with a depthwise convolution before the GELU."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = LevelwiseConv(hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, grids: Sequence[Grid]) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), grids)))


class Extractor(CrossAttention):
    """Updates the three levels from the ViT tokens.

    Args:
        dim, num_heads, num_points, value_ratio: see :class:`CrossAttention`.
        ffn_ratio: hidden width of the feed-forward layer over D.
        drop_path: probability to drop that layer's branch.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_points: int,
        value_ratio: float,
        ffn_ratio: float,
        drop_path: float,
    ):
        super().__init__(dim, num_heads, 1, num_points, value_ratio)
        self.ffn = ConvFFN(dim, int(dim * ffn_ratio))
        self.ffn_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, levels: Tensor, x: Tensor, geometry: Geometry, grids: Sequence[Grid]
    ) -> Tensor:
        """Levels (B, M, D) and tokens (B, N, D) -> levels (B, M, D)."""
        levels = levels + self.attend(levels, x, geometry)
        return levels + self.drop_path(self.ffn(self.ffn_norm(levels), grids))


class Interaction(nn.Module):
    """What stands around one group of ViT blocks: an injector before, extractors after.

    Args:
        dim, num_heads, num_points, value_ratio, ffn_ratio, drop_path: see :class:`Extractor`.
        extra_extractors: how many follow the first; two in the published last group.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_points: int,
        value_ratio: float,
        ffn_ratio: float,
        drop_path: float,
        extra_extractors: int = 0,
    ):
        super().__init__()
        shared = (dim, num_heads, num_points, value_ratio)
        self.injector = Injector(*shared)
        self.extractor = Extractor(*shared, ffn_ratio, drop_path)
        self.extra_extractors = nn.ModuleList(
            Extractor(*shared, ffn_ratio, drop_path) for _ in range(extra_extractors)
        )

    @property
    def extractors(self) -> list[Extractor]:
        """All of them, in order."""
        return [self.extractor, *self.extra_extractors]


def _conv(inputs: int, outputs: int, stride: int, norm_cfg: dict) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        norm2d(norm_cfg, outputs),
        nn.ReLU(inplace=True),
    ]


class SpatialPriorModule(nn.Module):
    """A small convolutional pyramid of the image, projected to the ViT's width.

    Args:
        channels: of the stem; the three levels above have 2, 4 and 4 times as many.
        dim: width D of the outputs.
        norm_cfg: of the convolutions.
    """

    def __init__(self, channels: int, dim: int, norm_cfg: dict):
        super().__init__()
        self.stem = nn.Sequential(
            *_conv(3, channels, 2, norm_cfg),
            *_conv(channels, channels, 1, norm_cfg),
            *_conv(channels, channels, 1, norm_cfg),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_conv(channels, 2 * channels, 2, norm_cfg))
        self.conv3 = nn.Sequential(*_conv(2 * channels, 4 * channels, 2, norm_cfg))
        self.conv4 = nn.Sequential(*_conv(4 * channels, 4 * channels, 2, norm_cfg))
        self.fc1 = nn.Conv2d(channels, dim, 1)
        self.fc2 = nn.Conv2d(2 * channels, dim, 1)
        self.fc3 = nn.Conv2d(4 * channels, dim, 1)
        self.fc4 = nn.Conv2d(4 * channels, dim, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, 3, H, W) -> maps (B, D, H / s, W / s) of the strides s = 4, 8, 16, 32."""
        c1 = self.stem(image)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return [self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)]
