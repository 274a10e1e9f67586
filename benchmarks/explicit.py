"""The explicit-score form of the detector's attention: the baseline that ours is held against.

Written plainly from the published detector (EVA-01/det/detectron2/modeling/backbone/vit.py and
utils.py): an N x N score matrix per head with both relative terms added to it, softmax, product
with v. It computes what ours computes, and what is around attention is ours.
"""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn

from eva_mm.rel_pos import relative_vectors
from eva_mm.vit import Attention


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, cols: Tensor | None, scale: float
) -> Tensor:
    """Softmax of all scores, written out.

    Args:
        q, k, v: (B, H, N, C).
        rows, cols: (B, H, N, h) and (B, H, N, w), or None without relative positions.
        scale: factor of q.

    Returns:
        (B, H, N, C).
    """
    scores = (q * scale) @ k.transpose(-2, -1)
    if rows is not None:
        scores = scores.unflatten(-1, (rows.shape[-1], cols.shape[-1]))
        scores = scores + rows[..., :, None] + cols[..., None, :]
        scores = scores.flatten(-2)
    return scores.softmax(dim=-1) @ v


def _forward(self: Attention, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """:meth:`eva_mm.vit.Attention.forward` by explicit scores."""
    B, N, D = x.shape
    qkv = self._project_qkv(x).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    rows = cols = None
    if self.rel_pos_h is not None:
        h, w = grid
        to_rows = relative_vectors(self.rel_pos_h, h, self.rel_pos_rule).to(q.dtype)
        to_cols = relative_vectors(self.rel_pos_w, w, self.rel_pos_rule).to(q.dtype)
        q_grid = q.unflatten(2, (h, w))
        rows = torch.einsum('bnyxc,ymc->bnyxm', q_grid, to_rows).flatten(2, 3)
        cols = torch.einsum('bnyxc,xmc->bnyxm', q_grid, to_cols).flatten(2, 3)
    out = explicit_attention(q, k, v, rows, cols, self.scale)
    return self.proj(out.transpose(1, 2).reshape(B, N, D))


def make_explicit(model: nn.Module) -> nn.Module:
    """Let every :class:`~eva_mm.vit.Attention` of a model hold its scores; in place."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.forward = types.MethodType(_forward, module)
    return model
