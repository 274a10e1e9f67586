"""Ways to compute attention with decomposed relative positions, and the choice among them.

All compute ``softmax(scale * q k^T + bias) v`` where the bias of query n for the key at (y, x) of
the grid is ``rows[n, y] + cols[n, x]``, and none holds the N x N scores of all heads:

* ``augmented``: the terms ride as extra channels of q and k through PyTorch's fused attention.
  Works on every device; its width, ``C + h + w``, costs arithmetic.
* ``blocked``: blocks of queries whose scores fit the processor's cache, ordinary matrix products
  on C channels, scores computed again in the backward pass. The fastest on CPUs.
* ``flex``: FlexAttention, compiled by Triton on GPUs; it adds the terms to scores in registers.

Shape letters: B batch, H heads, N = h * w tokens, C channels of a head.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

AUTO, FASTEST = 'auto', 'fastest'
ENV_NAME = 'EVA_MM_ATTENTION'

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------- augmented


def _one_hot_positions(h: int, w: int, like: Tensor) -> Tensor:
    """(h * w, h + w): for each token its row and its column as one-hot vectors."""
    rows = torch.eye(h, dtype=like.dtype, device=like.device)
    cols = torch.eye(w, dtype=like.dtype, device=like.device)
    return torch.cat((rows.repeat_interleave(w, dim=0), cols.repeat(h, 1)), dim=1)


def augmented_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, scale: float
) -> Tensor:
    """By ``q' = [scale * q, rows, cols]`` and ``k' = [k, onehot(row), onehot(column)]``.

    Args:
        q, k, v: (B, H, N, C).
        rows, cols: (B, H, N, h) and (B, H, N, w).
        scale: factor of the content scores.

    Returns:
        (B, H, N, C).
    """
    B, H, N, C = q.shape
    h, w = rows.shape[-1], cols.shape[-1]
    # Flash kernels want a width divisible by 8, and the same one for q, k and v.
    width = -(-(C + h + w) // 8) * 8
    spare = q.new_zeros(()).expand(B, H, N, width - C - h - w)
    positions = _one_hot_positions(h, w, k).expand(B, H, N, h + w)
    q = torch.cat((q * scale, rows, cols, spare), dim=-1)
    k = torch.cat((k, positions, spare), dim=-1)
    v = F.pad(v, (0, width - C))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :C]


# ------------------------------------------------------------------------------------------ blocked

# Scores per thread and block, 4 MiB of float32: a core's share of the last cache, where products
# are not yet slowed by short blocks. At most 32 MiB together.
SCORES_PER_THREAD, MOST_SCORES = 2**20, 2**23


def _blocks(H: int, N: int) -> Iterator[tuple[slice, slice]]:
    """Slices of heads and of queries whose scores fit a block."""
    scores = min(SCORES_PER_THREAD * torch.get_num_threads(), MOST_SCORES)
    queries = max(1, min(N, scores // N))
    heads = max(1, min(H, scores // (N * N)))
    for head in range(0, H, heads):
        for query in range(0, N, queries):
            yield slice(head, head + heads), slice(query, query + queries)


def _probabilities(q: Tensor, k: Tensor, rows: Tensor, cols: Tensor, scale: float) -> Tensor:
    """Softmax (heads, queries, N) over all keys, for a block of queries."""
    scores = (rows[..., None] + cols[..., None, :]).flatten(2)
    return scores.baddbmm_(q, k.transpose(1, 2), alpha=scale).softmax(-1)


def _in_float(*tensors: Tensor) -> list[Tensor]:
    """Half-precision tensors as float32, in which blocks are computed."""
    return [t if t.dtype == torch.float64 else t.float() for t in tensors]


def _no_autocast(function: Callable) -> Callable:
    """Products of float32 stay so; annotations, from which operators are made, stay too."""

    @functools.wraps(function)
    def run(q: Tensor, *args):
        with torch.autocast(q.device.type, enabled=False):
            return function(q, *args)

    return run


@torch.library.custom_op('eva_mm::rel_pos_attention', mutates_args=())
@_no_autocast
def _blocked_forward(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, scale: float
) -> Tensor:
    dtype = q.dtype
    q, k, v, rows, cols = _in_float(q, k, v, rows, cols)
    B, H, N, C = q.shape
    # Heads next to channels in memory, as the projection behind wants them.
    out = q.new_empty(B, N, H, C).transpose(1, 2)
    for image in range(B):
        for heads, queries in _blocks(H, N):
            block = image, heads, queries
            p = _probabilities(q[block], k[image, heads], rows[block], cols[block], scale)
            out[block] = p @ v[image, heads]
    return out.to(dtype)


@_blocked_forward.register_fake
def _(q, k, v, rows, cols, scale):
    B, H, N, C = q.shape
    return q.new_empty(B, N, H, C).transpose(1, 2)


@torch.library.custom_op('eva_mm::rel_pos_attention_backward', mutates_args=())
@_no_autocast
def _blocked_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, grid = q.dtype, (rows.shape[-1], cols.shape[-1])
    grad, q, k, v, rows, cols = _in_float(grad, q, k, v, rows, cols)
    B, H, N, _ = q.shape
    dq, drows, dcols = (torch.empty_like(t) for t in (q, rows, cols))
    dk, dv = (torch.zeros_like(t) for t in (k, v))
    for image in range(B):
        for heads, queries in _blocks(H, N):
            block, keys = (image, heads, queries), (image, heads)
            p = _probabilities(q[block], k[keys], rows[block], cols[block], scale)
            dv[keys].baddbmm_(p.transpose(1, 2), grad[block])
            dp = grad[block] @ v[keys].transpose(1, 2)
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
            dq[block] = (ds @ k[keys]).mul_(scale)
            dk[keys].baddbmm_(ds.transpose(1, 2), q[block], alpha=scale)
            ds = ds.unflatten(-1, grid)
            drows[block] = ds.sum(-1)
            dcols[block] = ds.sum(-2)
    return tuple(t.to(dtype) for t in (dq, dk, dv, drows, dcols))


@_blocked_backward.register_fake
def _(grad, q, k, v, rows, cols, scale):
    return tuple(torch.empty_like(t) for t in (q, k, v, rows, cols))


def _keep_inputs(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad: Tensor) -> tuple:
    return (*_blocked_backward(grad, *ctx.saved_tensors, ctx.scale), None)


_blocked_forward.register_autograd(_differentiate, setup_context=_keep_inputs)


def blocked_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, scale: float
) -> Tensor:
    """Block of queries by block of queries; arguments as of :func:`augmented_attention`.

    The memory beyond inputs and outputs is that of a few blocks. Half-precision inputs are computed
    in float32, in copies. It can be differentiated once.
    """
    return _blocked_forward(q, k, v, rows, cols, scale)


# --------------------------------------------------------------------------------------------- flex


def _flex(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    width = cols.shape[-1]

    def add_terms(score, image, head, query, key):
        row, col = key // width, key % width
        return score + rows[image, head, query, row] + cols[image, head, query, col]

    return flex_attention(q, k, v, score_mod=add_terms, scale=scale)


@functools.cache
def _compiled_flex() -> Kernel:
    import torch._dynamo  # takes a second

    # A graph per shape; past the limit, 8 by default, the explicit form would run in its place.
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    return torch.compile(_flex, dynamic=False)


def flex_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, scale: float
) -> Tensor:
    """FlexAttention; arguments as of :func:`augmented_attention`.

    Compiled on GPUs, once per shape. Elsewhere it runs uncompiled, which holds all scores: there
    it is only good to check against.
    """
    compiled = q.is_cuda and not torch.compiler.is_compiling()
    return (_compiled_flex() if compiled else _flex)(q, k, v, rows, cols, scale)


# ------------------------------------------------------------------------------------------- choice

KERNELS: dict[str, Kernel] = dict(
    augmented=augmented_attention, blocked=blocked_attention, flex=flex_attention
)
FLASH_CHANNELS = 256  # the most that PyTorch's flash kernels take; 1536 px make 280
_fastest: dict[tuple, str] = {}


def _checked(name: str, source: str) -> str:
    known = (AUTO, FASTEST, *KERNELS)
    if name not in known:
        raise ValueError(f'{source}: attention kernel {name!r}, expected one of {", ".join(known)}')
    return name


_chosen = _checked(os.environ.get(ENV_NAME, AUTO), f'environment variable {ENV_NAME}')


@contextmanager
def use_kernel(name: str) -> Iterator[None]:
    """Compute attention with relative positions in one way, inside a ``with`` statement.

    The environment variable ``EVA_MM_ATTENTION`` does it for a whole process.

    Args:
        name: a key of :data:`KERNELS`; ``'fastest'``: the kernels are timed at the first call of
            each shape, dtype and device, and the fastest serves from then on; ``'auto'`` (the
            default): blocked on CPUs, augmented elsewhere (and for fake tensors, which stand for
            a GPU's), but timed in evaluation on a GPU beyond :data:`FLASH_CHANNELS`. Nothing is
            timed inside compiled graphs and under ``torch.use_deterministic_algorithms``. With
            activation checkpointing the backward pass has to be inside the statement too, since it
            computes attention again.

    Raises:
        ValueError: another name.
    """
    global _chosen
    before, _chosen = _chosen, _checked(name, 'use_kernel')
    try:
        yield
    finally:
        _chosen = before


def _auto(q: Tensor) -> str:
    # benchmarks/RESULTS.md, `attention`. Shapes alone stand for a GPU: its memory is reckoned.
    on_cpu = q.device.type == 'cpu' and not isinstance(q, FakeTensor)
    return 'blocked' if on_cpu else 'augmented'


def _is_timed(tensors: tuple[Tensor, ...]) -> bool:
    """Whether the choice is by the clock: on request, and where flash kernels end.

    The latter in evaluation only, so that a resumed training goes on with the same kernel.
    """
    q, _, _, rows, cols = tensors
    wide = q.shape[-1] + rows.shape[-1] + cols.shape[-1] > FLASH_CHANNELS
    slow = wide and q.is_cuda and not torch.is_grad_enabled()
    if _chosen != FASTEST and not (_chosen == AUTO and slow):
        return False
    # While a graph is traced or shapes are reckoned with nothing can be timed, and a choice by
    # time differs between runs.
    untimed = torch.compiler.is_compiling() or q.is_meta or isinstance(q, FakeTensor)
    return not (untimed or torch.are_deterministic_algorithms_enabled())


def _run(name: str, tensors: tuple[Tensor, ...], scale: float, grad: bool) -> tuple[Tensor, ...]:
    """Output of a kernel, with the gradients of its sum if ``grad``."""
    with torch.set_grad_enabled(grad):
        out = KERNELS[name](*tensors, scale)
        gradients = torch.autograd.grad(out.sum(), tensors) if grad else ()
    return out.detach(), *gradients


def _agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """Whether output and gradients are the same but for rounding.

    Rounding of the output adds up in the gradients by row and by column.
    """
    half = found[0].dtype in (torch.float16, torch.bfloat16)
    bounds = [0.1 if half else 1e-3, *[0.3 if half else 1e-2] * (len(found) - 1)]
    return all(
        bool((a.float() - b.float()).norm() <= bound * b.float().norm() + 1e-3)
        for bound, a, b in zip(bounds, found, expected)
    )


def _time_of(
    name: str,
    tensors: tuple[Tensor, ...],
    scale: float,
    grad: bool,
    expected: tuple[Tensor, ...] | None,
) -> float:
    """Seconds of a call, with its backward pass if ``grad``.

    Infinite where the kernel fails or gives something else than ``expected``.
    """
    wait = torch.cuda.synchronize if tensors[0].is_cuda else lambda: None
    try:
        found = _run(name, tensors, scale, grad)
        if expected is not None and not _agree(found, expected):
            raise RuntimeError('its result is another one')
        wait()
        start = time.perf_counter()
        for _ in range(3):
            _run(name, tensors, scale, grad)
        wait()
    except Exception as error:  # whatever a compiler or a kernel's limits may raise
        logger.warning('attention kernel %s does not serve here: %s', name, error)
        return float('inf')
    return (time.perf_counter() - start) / 3


def _measured(tensors: tuple[Tensor, ...], scale: float) -> str:
    """The kernel that is fastest for these shapes here; timed once."""
    q = tensors[0]
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    shapes = tuple(tuple(t.shape) for t in tensors)
    key = (q.device, q.dtype, shapes, grad)
    if key not in _fastest:
        usual = _auto(q)
        others = [name for name in KERNELS if name != usual and (name != 'flex' or q.is_cuda)]
        inputs = tuple(t.detach().requires_grad_(grad) for t in tensors)
        # Hooks of activation checkpointing would take the trials for a part of its block.
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            times = {usual: _time_of(usual, inputs, scale, grad, None)}
            # Where the usual one fails there is nothing to hold the others against.
            serves = times[usual] < float('inf')
            expected = _run(usual, inputs, scale, grad) if serves else None
            for name in others:
                times[name] = _time_of(name, inputs, scale, grad, expected)
        _fastest[key] = min(times, key=times.get)
        told = ', '.join(f'{name} {1e3 * seconds:.2f} ms' for name, seconds in times.items())
        logger.info('attention of %s, %s, on %s: %s', shapes[0], q.dtype, q.device, told)
    return _fastest[key]


def choose_kernel(tensors: tuple[Tensor, ...], scale: float) -> str:
    """Name of the kernel that serves these arguments (q, k, v, rows, cols) now."""
    if _is_timed(tensors):
        return _measured(tensors, scale)
    return _auto(tensors[0]) if _chosen in (AUTO, FASTEST) else _chosen


def rel_pos_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, cols: Tensor, scale: float
) -> Tensor:
    """``softmax(scale * q k^T + bias) v`` by the chosen kernel (see :func:`use_kernel`).

    Args:
        q, k, v: (B, H, N, C), N = h * w tokens in row-major order.
        rows: (B, H, N, h): what every key in a row of the grid adds to a query's score.
        cols: (B, H, N, w): the same by column.
        scale: factor of the content scores.

    Returns:
        (B, H, N, C).
    """
    return KERNELS[choose_kernel((q, k, v, rows, cols), scale)](q, k, v, rows, cols, scale)
