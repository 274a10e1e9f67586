"""Attention with relative positions alone: every kernel beside the explicit-score form.

Shapes are the giant detector's. Each shape runs in a process of its own.
"""

from __future__ import annotations

import json
import sys

from benchmarks._steps import autocast_dtype
from benchmarks.common import MIB, Table, benchmark, read_names
from benchmarks.measuring import (
    USUAL,
    Memory,
    ceilings_note,
    in_child,
    set_allocator,
    side_by_side,
    the_device,
)

CHANNELS, HEADS = 88, 16
# Name -> images, grid. A processor gets fewer heads: the explicit form of 16 needs 20 GiB at 96².
SHAPES = {
    'windows-16': (25, (16, 16)),
    'global-64': (1, (64, 64)),
    'global-80': (1, (80, 80)),
    'global-96': (1, (96, 96)),
}


def make_inputs(batch: int, heads: int, grid: tuple[int, int], device: str, dtype) -> list:
    """q, k, v as a projection of packed tokens gives them, and terms by row and column."""
    import torch

    h, w = grid
    shape = (batch, h * w, 3, heads, CHANNELS)
    qkv = torch.randn(shape, device=device, dtype=dtype).permute(2, 0, 3, 1, 4)
    terms = [torch.randn(batch, heads, h * w, n, device=device, dtype=dtype) for n in grid]
    return [t.requires_grad_() for t in (*qkv.unbind(0), *terms)]


def kernels_of(device: str) -> dict:
    """Name -> kernel, the explicit form first."""
    from benchmarks.explicit import explicit_attention
    from eva_mm.rel_pos_kernels import KERNELS

    ours = {name: run for name, run in KERNELS.items() if name != 'flex' or device == 'cuda'}
    return dict(explicit=explicit_attention, **ours)


def largest_difference(out, expected) -> float:
    """Of the tensors of two results, relative to the largest entry of each expected one."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(out, expected))


def measure(batch: int, heads: int, grid: tuple[int, int], options: dict) -> dict:
    """Seconds, peak bytes and difference from the explicit form, per kernel and pass."""
    import torch

    torch.manual_seed(0)
    device, dtype = options['device'], getattr(torch, options['dtype'])
    inputs = make_inputs(batch, heads, grid, device, dtype)
    weights = torch.randn(batch, heads, grid[0] * grid[1], CHANNELS, device=device, dtype=dtype)
    scale = CHANNELS**-0.5

    def forward(kernel):
        with torch.no_grad():
            return (kernel(*inputs, scale),)

    def training(kernel):
        out = kernel(*inputs, scale)
        return torch.autograd.grad(out, inputs, weights)

    passes, result = dict(forward=forward, training=training), {}
    for pass_name, run in passes.items():
        expected, memory, difference = None, {}, {}
        for name, kernel in kernels_of(device).items():
            try:
                run(kernel)  # what is loaded or compiled at first use is not counted
                watch = Memory(device)
                out = run(kernel)
            except Exception as error:  # too little memory, or whatever a compiler raises
                print(f'{name}, {pass_name}: {error}', file=sys.stderr)
                continue
            memory[name] = watch.peak()
            expected = out if expected is None else expected
            difference[name] = largest_difference(out, expected)
        out = expected = None
        result[pass_name] = dict(memory=memory, difference=difference)
    # From here on freed memory is kept for the next call, which would hide peaks.
    set_allocator(USUAL)
    for pass_name, run in passes.items():
        able = result[pass_name]['memory']
        kernels = {name: kernel for name, kernel in kernels_of(device).items() if name in able}
        runs = {name: lambda k=kernel, run=run: run(k) for name, kernel in kernels.items()}
        result[pass_name]['seconds'] = side_by_side(runs, options['repeats'], device)
    return result


def rows_of_shape(name: str, result: dict) -> list[tuple]:
    """Rows of the table, a kernel each."""
    rows = []
    for kernel in dict.fromkeys(kernel for part in result.values() for kernel in part['seconds']):
        row = [name, kernel]
        for part in result.values():
            seconds, memory = part['seconds'], part['memory']
            if kernel not in seconds:
                row += [''] * 4
                continue
            both = 'explicit' in seconds
            row += [
                f'{1e3 * seconds[kernel]:.1f}',
                f'{seconds["explicit"] / seconds[kernel]:.2f}' if both else '',
                f'{memory[kernel] / MIB:.0f}',
                f'{part["difference"][kernel]:.0e}' if both and kernel != 'explicit' else '',
            ]
        rows.append(tuple(row))
    return rows


def read_shapes(text: str) -> tuple[str, ...]:
    """Names of :data:`SHAPES`.

    Raises:
        ValueError: another one.
    """
    names = read_names(text)
    for name in names:
        if name not in SHAPES:
            raise ValueError(f'unknown shape {name!r}, expected one of {", ".join(SHAPES)}')
    return names


@benchmark(
    'attention',
    'attention with relative positions: every kernel beside the explicit-score form',
    shapes=read_shapes,
    heads=int,
    repeats=int,
    dtype=str,
)
def attention(
    shapes: tuple[str, ...] = tuple(SHAPES),
    heads: int | None = None,
    repeats: int | None = None,
    dtype: str | None = None,
) -> list[Table]:
    """Table of shapes and kernels on this machine's GPU, or else its processor."""
    import torch

    device = the_device()
    heads = heads or (HEADS if device == 'cuda' else 4)
    dtype = dtype or str(autocast_dtype(device)).removeprefix('torch.')
    options = dict(device=device, dtype=dtype, repeats=repeats or (20 if device == 'cuda' else 3))
    rows = []
    for name in shapes:
        batch, grid = SHAPES[name]
        result = in_child('attention', json.dumps([batch, heads, grid]), json.dumps(options))
        rows += rows_of_shape(name, result)
    passes = [
        (f'{what}, ms', 'times as fast', 'memory, MiB', 'difference')
        for what in ('forward', 'forward+backward')
    ]
    notes = [
        f'{dtype}, {heads} heads of {CHANNELS} channels, one image of one giant block; terms by '
        'row and column given. Medians; the kernels called in turn.',
        'Memory: peak above the inputs. Difference: largest of an entry of the output (of the '
        "gradients), over that tensor's largest entry.",
        ceilings_note(device, getattr(torch, dtype))[1],
    ]
    header = ('shape', 'kernel', *passes[0], *passes[1])
    return [Table(header, rows, 'Attention with decomposed relative positions', notes)]


if __name__ == '__main__':
    (batch, heads, grid), options = (json.loads(text) for text in sys.argv[1:3])
    print(json.dumps(measure(batch, heads, tuple(grid), options)))
