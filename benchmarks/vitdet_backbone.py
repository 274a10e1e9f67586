"""The detector's backbone beside its explicit-score form: one block of each kind, and all blocks.

PyTorch and the core are all it needs. Each size and image side runs in a process of its own. On a
CPU the backbone is computed from its blocks.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks._steps import (
    allow_graphs,
    autocast_dtype,
    compile_blocks,
    flops_of_passes,
    number,
    precision,
    rows_of_all,
    told_precision,
)
from benchmarks.common import GIB, Table, benchmark, read_flag, read_numbers, read_sizes
from benchmarks.measuring import (
    USUAL,
    Memory,
    ceilings_note,
    in_child,
    measure_time,
    set_allocator,
    side_by_side,
    the_device,
)

SIZES = ('base', 'large', 'giant')
SIDES = (1024, 1280, 1536)
PATCH, WINDOW = 16, 16
KINDS = ('window', 'global')
WAYS = ('explicit', 'ours')
PASSES = ('forward', 'forward+backward')
RECOMPUTED = 'forward+backward, recomputed'
TOP_OPERATORS = 10
# Matrices of all scores of a block that the explicit form holds at once at its peak, with some
# room: past the machine's memory it is left out.
EXPLICIT_MATRICES = dict(zip(PASSES, (4, 5)))


def build_block(size: str, side: int, kind: str, way: str, device: str):
    """A block with random weights and tables, and the grid of tokens it is run on."""
    import torch

    from eva_mm.vit import Block, get_size

    shape = get_size(size)
    grid = (side // PATCH,) * 2
    window = WINDOW if kind == 'window' else 0
    torch.manual_seed(0)
    with torch.device(device):
        block = Block(
            shape.embed_dim,
            shape.num_heads,
            shape.mlp_dim,
            shape.qkv_bias,
            window_size=window,
            rel_pos_grid=(window, window) if window else grid,
        )
    for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
        torch.nn.init.normal_(table, std=0.1)
    if way == 'explicit':
        from benchmarks.explicit import make_explicit

        make_explicit(block)
    return block, grid


def build_backbone(size: str, side: int, way: str, device: str):
    """The backbone of the published detector without what it needs OpenMMLab for.

    It maps an image (B, 3, H, W) to (B, D, H / 16, W / 16), with windows in three of four blocks.
    """
    import torch

    from eva_mm.vit import Block, EVAVisionTransformer, get_size

    class Backbone(EVAVisionTransformer):
        def _make_block(self, index):
            window = 0 if index % 4 == 3 else WINDOW
            grid = (window or side // PATCH,) * 2
            return Block(**self._block_kwargs(index), window_size=window, rel_pos_grid=grid)

        def forward(self, image):
            return self.forward_intermediates(image, [-1])[0]

    with torch.device(device):
        model = Backbone(get_size(size, patch_size=PATCH), pooling=None, class_token=False)
    if way == 'explicit':
        from benchmarks.explicit import make_explicit

        make_explicit(model)
    return model


def scores_bytes(size: str, side: int, kind: str) -> int:
    """Bytes of all scores of a block in fp32."""
    from eva_mm.vit import get_size

    tokens = (side // PATCH) ** 2
    keys = WINDOW**2 if kind == 'window' else tokens
    return 4 * get_size(size).num_heads * tokens * keys


def fits(size: str, side: int, kind: str, way: str, part: str) -> bool:
    """Whether a processor's memory is enough for a block."""
    wanted = scores_bytes(size, side, kind) * EXPLICIT_MATRICES[part]
    return way != 'explicit' or wanted < _available_memory()


def _available_memory() -> int:
    (line,) = (
        line
        for line in Path('/proc/meminfo').read_text().splitlines()
        if line.startswith('MemAvailable')
    )
    return 1024 * int(line.split()[1])


# ------------------------------------------------------------------------------------- measurement


def block_step(size: str, side: int, kind: str, way: str, options: dict) -> dict[str, Callable]:
    """Functions that run a block once: pass -> function, which returns the output, or gradients."""
    import torch

    device = options['device']
    block, grid = build_block(size, side, kind, way, device)
    if options['compile']:
        allow_graphs()
        block.compile()
    torch.manual_seed(1)
    x = torch.randn(1, grid[0] * grid[1], block.norm1.normalized_shape[0], device=device)
    x.requires_grad_()
    weights = torch.randn_like(x)
    wanted = (x, *block.parameters())

    def forward():
        with torch.no_grad(), precision(device):
            return (block(x, grid),)

    def training():
        with precision(device):
            out = block(x, grid)
        return torch.autograd.grad(out, wanted, weights.to(out.dtype))

    return dict(zip(PASSES, (forward, training)))


def measure_blocks(size: str, side: int, options: dict) -> dict[str, dict[str, dict[str, dict]]]:
    """Measure both kinds of block in this process: memory of all, and then time, ways in turn.

    Returns:
        kind -> pass -> way -> ``seconds`` and ``peak`` in bytes above inputs and weights; a way
        that does not fit the memory is left out.

    Raises:
        RuntimeError: the ways differ by more than rounding.
    """
    device = options['device']
    result = {kind: {} for kind in KINDS}
    runs = {
        kind: {way: block_step(size, side, kind, way, options) for way in WAYS} for kind in KINDS
    }
    for kind, part in itertools.product(KINDS, PASSES):
        outputs, found = {}, {}
        for way in WAYS:
            if device != 'cuda' and not fits(size, side, kind, way, part):
                continue
            peak_of = functools.partial(_output_and_peak, runs[kind][way][part], options)
            if (measured := _if_memory_suffices(peak_of)) is not None:
                outputs[way], peak = measured
                found[way] = dict(peak=peak)
        if len(outputs) == 2:
            what = f'{kind} block of {size}, {side} px, {part}'
            half = device == 'cuda'
            bound = (2e-2 if part == 'forward' else 0.3) if half else 1e-4
            found['ours']['difference'] = check_agreement(outputs, what, bound)
        result[kind][part] = found
    outputs = measured = None
    # From here on freed memory is kept for the next call, which would hide peaks.
    set_allocator(USUAL)
    for kind, part in itertools.product(KINDS, PASSES):
        found = result[kind][part]
        seconds = side_by_side(
            {way: runs[kind][way][part] for way in found},
            options['repeats'],
            device,
            warm_up=3 if device == 'cuda' else 0,
        )
        for way, taken in seconds.items():
            found[way]['seconds'] = taken
    return result


def _output_and_peak(run: Callable, options: dict) -> tuple:
    if options['device'] == 'cuda' or options['compile']:
        run()  # makes workspaces, times kernels and compiles, which does not count
    memory = Memory(options['device'])
    return run(), memory.peak()


def _if_memory_suffices(run: Callable):
    """What a function returns; None where a GPU has too little memory for it."""
    import torch

    try:
        return run()
    except torch.OutOfMemoryError:
        pass  # outside of this clause the traceback holds the tensors no more
    gc.collect()
    torch.cuda.empty_cache()
    return None


def check_agreement(outputs: Mapping, what: str, bound: float) -> float:
    """Largest difference of two ways' tensors, relative to the expected one's norm.

    Raises:
        RuntimeError: it is not below the bound.
    """
    expected, found = (outputs[way] for way in WAYS)
    difference = max(
        float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(found, expected)
    )
    if not difference < bound:
        raise RuntimeError(f'ours and the explicit form differ by {difference}: {what}')
    return difference


def measure_backbone(size: str, side: int, options: dict) -> dict[str, dict[str, dict | None]]:
    """Measure whole backbones in this process, one way after the other.

    Returns:
        pass -> way -> ``seconds`` and ``peak`` in bytes above weights, gradients and the image;
        None where a GPU's memory does not suffice.
    """
    import torch

    device, result = options['device'], {part: {} for part in (*PASSES, RECOMPUTED)}
    image = torch.randn(1, 3, side, side, device=device)
    for way in WAYS:
        model = build_backbone(size, side, way, device)
        if options['compile']:
            compile_blocks(model)
        for part in result:
            model.activation_checkpointing = part == RECOMPUTED

            def step(model=model, part=part):
                with torch.set_grad_enabled(part != 'forward'), precision(device):
                    out = model(image)
                if part != 'forward':
                    out.float().sum().backward()

            def timed_step(step=step):
                step()  # gradients are there from now on
                memory = Memory(device)
                seconds = measure_time(step, options['repeats'], device)
                return dict(seconds=seconds, peak=memory.peak())

            result[part][way] = _if_memory_suffices(timed_step)
        del model, step, timed_step
        gc.collect()  # the explicit form's methods hold their modules, in a circle
    return result


def profile_blocks(size: str, side: int, options: dict) -> dict[str, list[tuple[str, float]]]:
    """Operators of a forward and backward pass of ours: kind -> names and seconds, largest first.

    Seconds are those of the operator itself, without what it calls; on a GPU, of its kernels.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda, result = options['device'] == 'cuda', {}
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    for kind in KINDS:
        run = block_step(size, side, kind, 'ours', options)['forward+backward']
        run()
        with profile(activities=activities) as profiler:
            run()
        events = [
            (e.key, (e.self_device_time_total if cuda else e.self_cpu_time_total) / 1e6)
            for e in profiler.key_averages()
            # Kernels are among the events too, and their time is that of the operator's.
            if e.device_type == torch.autograd.DeviceType.CPU
        ]
        result[kind] = sorted(events, key=lambda event: -event[1])
    return result


def measure(size: str, side: int, options: dict) -> dict:
    """Blocks and, on a GPU, whole backbones, in this process; or a profile of the blocks."""
    if options['profile']:
        return profile_blocks(size, side, options)
    result = dict(blocks=measure_blocks(size, side, options))
    if options['device'] == 'cuda':
        result['backbone'] = measure_backbone(size, side, options)
    return result


def backbone_flops(size: str, side: int) -> dict[str, int]:
    """FLOPs per image that the mathematics needs: those of the explicit form, from shapes alone."""
    import torch

    model = build_backbone(size, side, 'explicit', 'meta')
    forward, both = flops_of_passes(model, torch.zeros(1, 3, side, side, device='meta'))
    return dict(zip((*PASSES, RECOMPUTED), (forward, both, both)))


def computed_backbone(size: str, blocks: Mapping) -> dict[str, dict[str, dict | None]]:
    """Seconds of a backbone as the sum of its blocks; None for a way that lacks one of them."""
    from eva_mm.vit import get_size

    depth = get_size(size).depth
    counts = dict(zip(KINDS, (depth - depth // 4, depth // 4)))
    result = {}
    for part in PASSES:
        result[part] = {}
        for way in WAYS:
            found = {kind: blocks[kind][part].get(way) for kind in KINDS}
            able = all(found.values())
            seconds = able and sum(counts[kind] * found[kind]['seconds'] for kind in KINDS)
            result[part][way] = dict(seconds=seconds, peak=None) if able else None
    return result


# ------------------------------------------------------------------------------------------- table


def cells(found: Mapping[str, dict | None]) -> list[str]:
    """Seconds of both ways and their ratio, then peaks and theirs; empty where there is none.

    At the end by how much the ways differ.
    """
    given = [found.get(way) or dict(seconds=None, peak=None) for way in WAYS]
    row = []
    for key, unit in (('seconds', 1), ('peak', GIB)):
        explicit, ours = (each[key] for each in given)
        row += ['' if value is None else number(value / unit) for value in (explicit, ours)]
        both = explicit is not None and ours is not None
        ratio = (explicit / ours if key == 'seconds' else ours / explicit) if both else None
        row.append('' if ratio is None else f'{ratio:.2f}')
    difference = given[1].get('difference')
    return [*row, '' if difference is None else f'{difference:.0e}']


def rows_of(size: str, side: int, options: dict, ceiling: float) -> list[tuple]:
    """Rows of the blocks and of the backbone, a pass each."""
    result = in_child('vitdet_backbone', size, str(side), json.dumps(options))
    rows = [
        (size, side, f'{kind} block', part, 'measured', *cells(found), '')
        for kind, passes in result['blocks'].items()
        for part, found in passes.items()
    ]
    how = 'measured' if 'backbone' in result else 'computed'
    flops = backbone_flops(size, side)
    backbone = result.get('backbone') or computed_backbone(size, result['blocks'])
    for part, found in backbone.items():
        used = found['ours'] and flops[part] / found['ours']['seconds'] / ceiling
        rows.append(
            (
                size, side, 'backbone', part, how, *cells(found),
                f'{100 * used:.0f} %' if used else '',
            )
        )  # fmt: skip
    for row in rows:
        print(*row, sep='  ', file=sys.stderr, flush=True)
    return rows


def profile_table(size: str, side: int, options: dict) -> Table:
    """Where the time of a window block and of a global one goes."""
    found = in_child('vitdet_backbone', size, str(side), json.dumps(dict(options, profile=True)))
    rows = []
    for kind, events in found.items():
        total = sum(seconds for _, seconds in events) or float('nan')
        shown = events[:TOP_OPERATORS]
        rest = total - sum(seconds for _, seconds in shown)
        rows += [
            (f'{kind} block', name, number(seconds), f'{100 * seconds / total:.0f} %')
            for name, seconds in [*shown, ('others', rest)]
        ]
    notes = ["PyTorch's profiler, one pass; an operator without what it calls."]
    title = f'Forward and backward pass of ours, {size}, {side} px'
    return Table(('what', 'operator', 'seconds', 'share'), rows, title, notes)


@benchmark(
    'vitdet_backbone',
    "the detector's backbone beside its explicit-score form: a window block, a global one, all",
    sizes=read_sizes,
    sides=read_numbers,
    repeats=int,
    compile=read_flag,
    profile=read_flag,
)
def vitdet_backbone(
    sizes: tuple[str, ...] = SIZES,
    sides: tuple[int, ...] = SIDES,
    repeats: int | None = None,
    compile: bool = False,
    profile: bool = False,
) -> list[Table]:
    """Table of sizes and image sides on this machine's GPU, or else its processor.

    With ``profile`` one more of the operators of the last size and side.
    """
    import torch

    device = the_device()
    options = dict(
        device=device,
        repeats=repeats or (20 if device == 'cuda' else 2),
        compile=compile,
        profile=False,
    )
    ceiling, ceilings = ceilings_note(device, autocast_dtype(device))
    rows = rows_of_all(
        itertools.product(sizes, sides), lambda *case: rows_of(*case, options, ceiling)
    )
    header = (
        'size', 'side, px', 'what', 'pass', 'how', 'explicit, s', 'ours, s', 'times as fast',
        'explicit, GiB', 'ours, GiB', 'of it', 'difference', 'utilisation, ours',
    )  # fmt: skip
    notes = [
        f'{told_precision(device)}{", blocks compiled" * compile}, {torch.get_num_threads()} '
        f'threads, one image; patches of {PATCH} px, windows of {WINDOW} x {WINDOW}, relative '
        f'positions, no drop path. Medians of {options["repeats"]}, blocks in turn. Memory: the '
        'peak above weights, inputs and, of backbones, gradients.',
        'Explicit: scores written out, see benchmarks/explicit.py. Difference: largest of a '
        "block's output (of its gradients), over that tensor's norm.",
        "Utilisation: the explicit form's counted FLOPs over the matrix product's ceiling. "
        + ceilings,
    ]
    if device != 'cuda':
        notes.append(
            'Computed: the sum of its blocks, without embeddings. Where the explicit form is left '
            "out, its scores exceed this machine's memory."
        )
    tables = [Table(header, rows, 'Backbone of the detector', notes)]
    return [*tables, profile_table(sizes[-1], sides[-1], options)] if profile else tables


if __name__ == '__main__':
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))))
