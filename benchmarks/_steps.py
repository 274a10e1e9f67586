"""What the benchmarks of whole steps share: the step itself, and depths too slow to be measured."""

from __future__ import annotations

import contextlib
import gc
import itertools
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.common import GIB
from benchmarks.measuring import (
    USUAL,
    Memory,
    count_flops,
    measure_time,
    set_allocator,
    side_by_side,
)

FEW_BLOCKS = (1, 2)  # depths that stand for a deep model
SLOW_ON_CPU = 1e12  # FLOPs per sample and training step that a CPU is not kept busy with


def depths_to_measure(depth: int, step_flops: float, device: str) -> tuple[int, ...]:
    """The depth itself, or a few blocks where a CPU would take too long."""
    slow = device != 'cuda' and step_flops > SLOW_ON_CPU and depth > max(FEW_BLOCKS)
    return FEW_BLOCKS if slow else (depth,)


def at_depth(measured: Mapping[int, float], depth: int) -> float:
    """A figure at a depth, from its own measurement or in a straight line through two others."""
    if depth in measured:
        return measured[depth]
    (low, first), (high, second) = sorted(measured.items())
    return first + (depth - low) * (second - first) / (high - low)


def how(depths: tuple[int, ...]) -> str:
    """Cell that tells whether a figure is measured or computed."""
    return 'measured' if len(depths) == 1 else 'computed'


COMPUTED_NOTE = (
    'Computed, memory too: from one and from two blocks; every further block as the second.'
)


def autocast_dtype(device: str):
    """bf16 on a GPU that has it, fp16 on another one, fp32 on a processor."""
    import torch

    if device != 'cuda':
        return torch.float32
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float16


def precision(device: str) -> contextlib.AbstractContextManager:
    """Autocast in :func:`autocast_dtype`."""
    import torch

    dtype = autocast_dtype(device)
    return torch.autocast(device, dtype) if device == 'cuda' else contextlib.nullcontext()


def told_precision(device: str) -> str:
    """``'fp32'``, or ``'bfloat16 autocast'``."""
    name = str(autocast_dtype(device)).removeprefix('torch.')
    return f'{name} autocast' if device == 'cuda' else 'fp32'


def compile_blocks(model) -> None:
    """Compile each block on its own, as ``tools/train.py --compile`` does."""
    allow_graphs()
    for block in model.blocks:
        block.compile()


def allow_graphs() -> None:
    """Let one function, which all blocks share, have more than 8 graphs; beyond it runs eagerly."""
    import torch._dynamo

    # Called `recompile_limit` from PyTorch 2.7 on, which keeps this name.
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)


def inference_step(model, inputs, device: str) -> Callable[[], object]:
    """Forward pass without gradients, under autocast on a GPU."""
    import torch

    model.eval()

    def step():
        with torch.no_grad(), precision(device):
            return model(inputs)

    return step


def training_step(model, inputs, labels, device: str) -> Callable[[], object]:
    """Forward and backward pass and fused AdamW, under autocast on a GPU."""
    import torch
    import torch.nn.functional as F

    model.train()
    optimizer = torch.optim.AdamW(
        [param for param in model.parameters() if param.requires_grad], lr=1e-5, fused=True
    )

    def step():
        with precision(device):
            logits = model(inputs)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def flops_of_passes(model, inputs) -> tuple[int, int]:
    """FLOPs of a forward pass, and of one with its backward pass; on the meta device too."""
    import torch

    with torch.no_grad():
        forward = count_flops(lambda: model(inputs))
    return forward, count_flops(lambda: model(inputs).sum().backward())


def difference_of(model, other, inputs) -> float:
    """Relative difference of two models' outputs with the same random weights.

    Raises:
        RuntimeError: it is more than rounding.
    """
    import torch

    for param in model.eval().parameters():  # fresh biases are zero, and would hide a difference
        torch.nn.init.normal_(param, std=0.05)
    other.eval().load_state_dict(model.state_dict())
    with torch.no_grad():
        found, expected = model(inputs), other(inputs)
    difference = float((found - expected).norm() / expected.norm())
    if not difference < 1e-4:
        raise RuntimeError(f'outputs differ by {difference}')
    return difference


def measure_in_turn(
    make_step: Callable[[str, str, int], Callable[[], object]], names: Sequence[str], options: dict
) -> dict[str, dict[str, dict[int, dict]]]:
    """Memory of several variants one after the other, and their speed.

    A processor runs them in turn for the latter, a GPU, which is nobody else's, one by one.

    Args:
        make_step: (mode, name, depth) -> function that runs the variant's step once.
        names: what is compared.
        options: ``device``, ``repeats``, ``modes`` and ``depths``.

    Returns:
        mode -> name -> depth -> ``seconds`` and ``peak``, bytes above what was held before it was
        built. A variant for which a GPU's memory does not suffice is left out.
    """
    device, repeats = options['device'], options['repeats']
    result = {mode: {name: {} for name in names} for mode in options['modes']}
    for mode, name, depth in itertools.product(options['modes'], names, options['depths']):
        found = _measure_alone(
            lambda step=(mode, name, depth): make_step(*step), device, repeats, options['compile']
        )
        if found is not None:
            result[mode][name][depth] = found
    if device == 'cuda':
        return result
    set_allocator(USUAL)
    for mode, each in result.items():
        gc.collect()
        variants = itertools.product(names, options['depths'])
        steps = {variant: make_step(mode, *variant) for variant in variants}
        seconds = side_by_side(steps, repeats, device)
        del steps
        for (name, depth), taken in seconds.items():
            each[name][depth]['seconds'] = taken
    return result


def _measure_alone(
    make: Callable[[], Callable[[], object]], device: str, repeats: int, compiled: bool
) -> dict[str, float] | None:
    """Peak of a step; on a GPU its seconds too, or None where it has too little memory."""
    import torch

    try:
        return _peak(make, device, repeats, compiled)
    except torch.OutOfMemoryError:
        pass  # outside of this clause the traceback holds the tensors no more
    gc.collect()
    torch.cuda.empty_cache()
    return None


def _peak(
    make: Callable[[], Callable[[], object]], device: str, repeats: int, compiled: bool
) -> dict[str, float]:
    gc.collect()
    memory = Memory(device)
    step = make()
    for _ in range(2):  # AdamW's state is there from the second step on
        step()
    if compiled:  # which took memory of its own
        memory.restart()
        step()
    found = dict(peak=memory.peak())
    if device == 'cuda':
        found['seconds'] = measure_time(step, repeats, device)
    return found


def rows_of_all(cases: Iterable[tuple], rows_of: Callable[..., list[tuple]]) -> list[tuple]:
    """Rows of every case. One whose process fails is told of, and the others have their rows.

    Raises:
        RuntimeError: every one failed; the last one's.
    """
    rows, last = [], None
    for case in cases:
        try:
            rows += rows_of(*case)
        except RuntimeError as error:
            print(f'{case}: {error}', file=sys.stderr, flush=True)
            last = error
    if not rows and last is not None:
        raise last
    return rows


def figures_at_depth(measured: Mapping[str, Mapping], depth: int) -> dict[str, dict[str, float]]:
    """What :func:`measure_in_turn` gave, at one depth: name -> ``seconds`` and ``peak``.

    Depths may be text, as JSON makes them. A name without figures is left out.
    """
    return {
        name: {
            key: at_depth({int(few): each[key] for few, each in of_depth.items()}, depth)
            for key in ('seconds', 'peak')
        }
        for name, of_depth in measured.items()
        if of_depth
    }


def comparison(
    found: Mapping[str, Mapping[str, float]], names: tuple[str, str], samples: int
) -> list[str]:
    """Samples/s of two ways and their ratio, peaks in GiB and theirs; empty where there is none."""
    cells = []
    given = [found.get(name) for name in names]
    for make, unit in ((lambda f: samples / f['seconds'], 1), (lambda f: f['peak'], GIB)):
        values = [None if figures is None else make(figures) for figures in given]
        cells += ['' if value is None else number(value / unit) for value in values]
        cells.append('' if None in values else f'{values[0] / values[1]:.2f}')
    return cells


def number(value: float) -> str:
    """Three digits, without an exponent from 100 on."""
    return f'{value:.3g}' if value < 100 else f'{value:.0f}'
