"""Attention with decomposed relative positions, exact and without an N x N bias.

The bias that a query at (y, x) gives a key at (m, n) is ``q · Rh[y - m] + q · Rw[x - n]``
(MViTv2, arXiv 2112.01526; ViTDet, arXiv 2203.16527). It depends on the key through its row and
its column only: h + w numbers per query, computed here, say it all.
:mod:`eva_mm.rel_pos_kernels` has the ways to add them to the scores.

Shape letters: B batch, H heads, N = h * w tokens, C channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rel_pos_kernels import rel_pos_attention
from .resize import resize_rel_pos


def relative_vectors(table: Tensor, side: int, rule: str = 'linear') -> Tensor:
    """Rows of ``table`` for every (query, key) position along one axis.

    Args:
        table: (length, C), any odd length; resized to ``2 * side - 1`` rows by ``rule``.
        side: number of positions along the axis.

    Returns:
        (side, side, C): entry (q, k) belongs to the offset q - k.
    """
    table = resize_rel_pos(table, 2 * side - 1, rule)
    position = torch.arange(side, device=table.device)
    return table[position[:, None] - position[None, :] + side - 1]


def decomposed_rel_pos_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    grid: tuple[int, int],
    scale: float,
    rule: str = 'linear',
) -> Tensor:
    """``softmax(scale * q k^T + bias) v`` with decomposed relative positions.

    The bias uses the unscaled query, as published.

    Args:
        q, k, v: (B, H, N, C).
        rel_pos_h, rel_pos_w: (length, C) tables, resized to the grid by ``rule`` if needed.
        grid: (h, w) with h * w = N, row-major tokens.
        scale: factor of the content scores.

    Returns:
        (B, H, N, C).
    """
    B, H, N, C = q.shape
    h, w = grid
    Rh = relative_vectors(rel_pos_h, h, rule).to(q.dtype)
    Rw = relative_vectors(rel_pos_w, w, rule).to(q.dtype)
    q_grid = q.reshape(B, H, h, w, C)
    row_scores = torch.einsum('bhyxc,ymc->bhyxm', q_grid, Rh).reshape(B, H, N, h)
    col_scores = torch.einsum('bhyxc,xnc->bhyxn', q_grid, Rw).reshape(B, H, N, w)
    return rel_pos_attention(q, k, v, row_scores, col_scores, scale)
