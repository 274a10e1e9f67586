"""Resizing of learned tables and kernels, each as a fixed linear map.

Every rule the EVA authors use (bicubic position embeddings, linear and geometric-cubic relative
position tables, bicubic patch kernels) is linear in the values it resizes. So each is a matrix
``R(src, dst)`` of shape (dst, src), computed once in float64 and applied as ``R @ table``:
differentiable, deterministic on every device, and without SciPy at run time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GEOMETRIC_RATIO_DETECTOR = 1.0903078
"""Ratio of the geometric grid that the published detector uses for every table size
(EVA-01/det/detectron2/modeling/backbone/utils.py)."""


def _interpolation_matrix(mode: str, src: int, dst: int) -> Tensor:
    """(dst, src) matrix of ``F.interpolate(..., align_corners=False)`` along one axis."""
    eye = torch.eye(src, dtype=torch.float64, device='cpu')
    if mode == 'linear':
        return F.interpolate(eye[None], size=dst, mode='linear', align_corners=False)[0].T
    columns = eye[None, :, :, None]
    resized = F.interpolate(columns, size=(dst, 1), mode=mode, align_corners=False)
    return resized[0, :, :, 0].T


def _spline_matrix(knots: Tensor, targets: Tensor) -> Tensor:
    """(len(targets), len(knots)) matrix of the not-a-knot cubic spline through ``knots``.

    Targets outside the knots are extrapolated with the outermost polynomial piece. This is the
    interpolant of ``scipy.interpolate.interp1d(kind='cubic', fill_value='extrapolate')``.
    """
    n = len(knots)
    if n < 4:
        raise ValueError(f'a cubic spline needs at least 4 knots, got {n}')
    step = knots.diff()
    # Second derivatives M solve A @ M = B @ y: continuity of the first derivative inside, and
    # a continuous third derivative at the second and the last but one knot (not-a-knot).
    a = torch.zeros(n, n, dtype=torch.float64, device='cpu')
    b = torch.zeros_like(a)
    for i in range(1, n - 1):
        left, right = step[i - 1], step[i]
        a[i, i - 1], a[i, i], a[i, i + 1] = left, 2 * (left + right), right
        b[i, i - 1], b[i, i], b[i, i + 1] = 6 / left, -6 / left - 6 / right, 6 / right
    for row, i in ((0, 0), (n - 1, n - 3)):
        a[row, i], a[row, i + 1], a[row, i + 2] = (
            step[i + 1],
            -(step[i] + step[i + 1]),
            step[i],
        )
    second = torch.linalg.solve(a, b)
    piece = (torch.searchsorted(knots, targets, right=True) - 1).clamp(0, n - 2)
    h = step[piece][:, None]
    w1 = ((targets - knots[piece])[:, None]) / h
    w0 = 1 - w1
    eye = torch.eye(n, dtype=torch.float64, device='cpu')
    curvature = (w0**3 - w0) * second[piece] + (w1**3 - w1) * second[piece + 1]
    return w0 * eye[piece] + w1 * eye[piece + 1] + curvature * h**2 / 6


_MAX_RATIO = 1.5


def _geometric_ratio(src: int, dst: int) -> float:
    """Ratio whose geometric series over ``src // 2`` terms reaches ``dst // 2``.

    Bisection in [1.01, 1.5] as in BEiT (EVA-01/eva/utils.py, EVA-01/seg/mmcv_custom).
    """
    low, high = 1.01, _MAX_RATIO
    while high - low > 1e-6:
        q = (low + high) / 2
        if (1 - q ** (src // 2)) / (1 - q) > dst // 2:
            high = q
        else:
            low = q
    return q


def _distances(ratio: float, terms: int) -> list[float]:
    """1, 1 + q, 1 + q + q^2, ...: ``terms`` of them."""
    return [math.fsum(ratio**i for i in range(n)) for n in range(1, terms + 1)]


def _geometric_matrix(src: int, dst: int, ratio: float | None) -> Tensor:
    """Cubic resize of a relative table whose rows sit at geometrically growing offsets.

    The ``src`` rows are placed at offsets 0, ±1, ±(1+q), ±(1+q+q²), ...; the spline through
    them is read at the integers -(dst // 2) ... dst // 2. Where the steepest grid of the search
    for a ratio does not reach that far (small tables, none of the published ones), it is
    stretched: far outside of its rows a cubic says nothing.
    """
    if src % 2 == 0 or dst % 2 == 0:
        raise ValueError(f'relative tables have an odd number of rows, got {src} -> {dst}')
    reach = dst // 2
    distances = _distances(ratio or _geometric_ratio(src, dst), src // 2)
    steepest = _distances(_MAX_RATIO, src // 2)
    if ratio is None and steepest and steepest[-1] < reach:
        distances = [distance * reach / steepest[-1] for distance in steepest]
    knots = [-d for d in reversed(distances)] + [0.0] + distances
    targets = torch.arange(-reach, reach + 1, dtype=torch.float64, device='cpu')
    return _spline_matrix(torch.tensor(knots, dtype=torch.float64, device='cpu'), targets)


_RULES: dict[str, Callable[[int, int], Tensor]] = {
    'linear': lambda src, dst: _interpolation_matrix('linear', src, dst),
    'bicubic': lambda src, dst: _interpolation_matrix('bicubic', src, dst),
    'geometric_detector': lambda src, dst: _geometric_matrix(src, dst, GEOMETRIC_RATIO_DETECTOR),
    'geometric': lambda src, dst: _geometric_matrix(src, dst, None),
}
REL_POS_RULES = ('linear', 'geometric_detector', 'geometric')
_matrices: dict[tuple, Tensor] = {}


def resize_matrix(
    rule: str,
    src: int,
    dst: int,
    device: torch.device | str = 'cpu',
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The (dst, src) matrix of a rule: 'linear', 'bicubic', 'geometric_detector', 'geometric'."""
    if rule not in _RULES:
        raise ValueError(f'unknown resize rule {rule!r}, expected one of {sorted(_RULES)}')
    key = (rule, src, dst, torch.device(device), dtype)
    matrix = _matrices.get(key)
    if matrix is None:
        # Made as a normal tensor even in an evaluation loop, since training may use it later.
        with torch.inference_mode(False), torch.no_grad():
            matrix = _RULES[rule](src, dst).to(device, dtype)
        if type(matrix) is torch.Tensor and not matrix.is_meta:
            _matrices[key] = matrix
    return matrix


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    """Half-precision tables are resized in fp32 and cast back, as published."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _full_precision(device_type: str):
    """Context without autocast; the meta device knows none."""
    if device_type == 'meta':
        return contextlib.nullcontext()
    return torch.autocast(device_type, enabled=False)


def resize_grid(grid: Tensor, size: tuple[int, int], rule: str = 'bicubic') -> Tensor:
    """Resize the first two axes of ``grid`` (h, w, ...) to ``size``; dtype is kept."""
    h, w = grid.shape[:2]
    if (h, w) == tuple(size):
        return grid
    dtype = _compute_dtype(grid)
    rows = resize_matrix(rule, h, size[0], grid.device, dtype)
    cols = resize_matrix(rule, w, size[1], grid.device, dtype)
    with _full_precision(grid.device.type):
        out = torch.tensordot(rows, grid.to(dtype), dims=([1], [0]))
        out = torch.tensordot(cols, out, dims=([1], [1])).transpose(0, 1)
    return out.to(grid.dtype)


def square_side(num_patches: int) -> int:
    """Side of a square token grid.

    Raises:
        ValueError: if ``num_patches`` is not a square number.
    """
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(f'position embedding of {num_patches} patches is not a square grid')
    return side


def resize_pos_embed(
    pos_embed: Tensor,
    size: tuple[int, int],
    num_prefix_tokens: int = 1,
    source_size: tuple[int, int] | None = None,
) -> Tensor:
    """Resize a position embedding bicubically; the prefix (class token) slots stay as they are.

    Args:
        pos_embed: (1, num_prefix_tokens + h * w, dim).
        size: grid (h, w) in patches to resize to.
        num_prefix_tokens: slots in front of the grid.
        source_size: grid the embedding has now; a square by default.

    Returns:
        (1, num_prefix_tokens + size[0] * size[1], dim), same dtype.
    """
    prefix, patches = pos_embed[:, :num_prefix_tokens], pos_embed[0, num_prefix_tokens:]
    if source_size is None:
        source_size = (square_side(len(patches)),) * 2
    grid = patches.reshape(*source_size, -1)
    resized = resize_grid(grid, size).reshape(1, size[0] * size[1], -1)
    return torch.cat((prefix, resized), dim=1) if num_prefix_tokens else resized


def resize_rel_pos(table: Tensor, length: int, rule: str = 'linear') -> Tensor:
    """Resize a relative position table (2 * side - 1, dim) to ``length`` rows."""
    if len(table) == length:
        return table
    if rule not in REL_POS_RULES:
        raise ValueError(f'unknown relative table rule {rule!r}, expected one of {REL_POS_RULES}')
    dtype = _compute_dtype(table)
    matrix = resize_matrix(rule, len(table), length, table.device, dtype)
    with _full_precision(table.device.type):
        return (matrix @ table.to(dtype)).to(table.dtype)


def resize_patch_kernel(weight: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize a patch embedding kernel (dim, channels, h, w) by plain bicubic interpolation.

    No rescaling and no pseudo-inverse: this is how ``eva_psz14to16.pt`` was made
    (EVA-01/eva/interpolate_patch_14to16.py).
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    return resize_grid(weight.permute(2, 3, 0, 1), size).permute(2, 3, 0, 1).contiguous()
