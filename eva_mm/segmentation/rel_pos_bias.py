"""Attention with BEiT's relative position bias, as the published segmentors with tables have it.

Source: BEiT, arXiv 2106.08254; github.com/baaivision/EVA, EVA-01/seg (`use_rel_pos_bias`). A table
holds one number per head for each offset between two patches, then three for the class token: as a
query, as a key, and with itself.

Shape letters: B batch, N = 1 + h * w tokens, D width, H heads, C = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_mm.resize import resize_grid, square_side
from eva_mm.vit import Attention, Grid

CLASS_TOKEN_ROWS = 3


def resize_bias_table(table: Tensor, source: Grid, target: Grid) -> Tensor:
    """Resize a table by a cubic spline over geometrically growing offsets, as published.

    The rule is separable, so each axis is the fixed matrix of :mod:`eva_mm.resize`
    (EVA-01/seg/mmcv_custom/checkpoint.py fits a two-dimensional spline per head).

    Args:
        table: ((2h - 1)(2w - 1) + 3, H) of the grid ``source``.
        source: grid (h, w) in patches that the table is made for.
        target: grid to resize to. The rows of the class token stay.
    """
    if source == target:
        return table
    shape = [2 * side - 1 for side in source]
    offsets = table[:-CLASS_TOKEN_ROWS].reshape(*shape, -1)
    offsets = resize_grid(offsets, tuple(2 * side - 1 for side in target), 'geometric')
    return torch.cat((offsets.flatten(0, 1), table[-CLASS_TOKEN_ROWS:]))


def _offsets(side: int, device: torch.device) -> Tensor:
    """(side, side): entry (q, k) is the row of a table that belongs to the offset q - k."""
    position = torch.arange(side, device=device)
    return position[:, None] - position[None, :] + side - 1


def attention_bias(table: Tensor, grid: Grid) -> Tensor:
    """Bias of every pair of tokens, the class token first.

    Args:
        table: ((2h - 1)(2w - 1) + 3, H).
        grid: (h, w) in patches.

    Returns:
        (H, N, N), queries before keys.
    """
    h, w = grid
    by_head = table.T
    patches = by_head[:, :-CLASS_TOKEN_ROWS].reshape(-1, 2 * h - 1, 2 * w - 1)
    # Row by row and column by column, so that no index of N x N entries is needed.
    patches = patches[:, _offsets(h, table.device)][..., _offsets(w, table.device)]
    patches = patches.transpose(2, 3).reshape(-1, h * w, h * w)
    as_query, as_key, itself = by_head[:, -CLASS_TOKEN_ROWS:, None, None].unbind(1)
    first = torch.cat((itself, as_query.expand(-1, 1, h * w)), dim=2)
    return torch.cat((first, torch.cat((as_key.expand(-1, h * w, 1), patches), dim=2)), dim=1)


class TableAttention(Attention):
    """Self-attention whose scores get a learned bias per head and offset, zero at first.

    Args:
        dim, num_heads, qkv_bias: see :class:`~eva_mm.vit.Attention`.
        table_grid: grid (h, w) that ``relative_position_bias_table`` is made for. Other grids
            resize it on the fly, checkpoints of another square grid on loading.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: str, table_grid: Grid):
        super().__init__(dim, num_heads, qkv_bias)
        self.table_grid = table_grid
        h, w = table_grid
        rows = (2 * h - 1) * (2 * w - 1) + CLASS_TOKEN_ROWS
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, num_heads))

    def forward(self, x: Tensor, grid: Grid | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D), with the class token first and a grid (h, w)."""
        B, N, D = x.shape
        qkv = self._project_qkv(x).reshape(B, N, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        table = resize_bias_table(self.relative_position_bias_table, self.table_grid, grid)
        bias = attention_bias(table, grid).to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self.proj(x.transpose(1, 2).reshape(B, N, D))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        key = prefix + 'relative_position_bias_table'
        table, own = state_dict.get(key), self.relative_position_bias_table
        if table is not None and len(table) != len(own):
            side = (square_side(len(table) - CLASS_TOKEN_ROWS) + 1) // 2
            state_dict[key] = resize_bias_table(table, (side, side), self.table_grid)
        super()._load_from_state_dict(state_dict, prefix, *args)
