"""What the benchmarks of whole steps share: the step itself, and depths too slow to be measured."""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Callable, Mapping, Sequence

from benchmarks.measuring import Memory, side_by_side

FEW_BLOCKS = (1, 2)  # depths that stand for a deep model
USUAL = 32 * 2**20  # bytes; the most that glibc raises its threshold to by itself
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


def set_allocator(threshold: int) -> None:
    """Let glibc give freed blocks of more bytes back to the system at once, smaller ones late.

    A child gives everything back, which makes peaks exact; but every new tensor then costs page
    faults that an ordinary run does not have. So memory is measured first, and time then, with
    :data:`USUAL`.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):  # glibc's numbers of the thresholds to map and to trim
        libc.mallopt(-3, threshold)
        libc.mallopt(-1, 2 * threshold)


def precision(device: str) -> contextlib.AbstractContextManager:
    """bf16 autocast on a GPU, fp32 elsewhere."""
    import torch

    cuda = device == 'cuda'
    return torch.autocast('cuda', torch.bfloat16) if cuda else contextlib.nullcontext()


def inference_step(model, inputs, device: str) -> Callable[[], object]:
    """Forward pass without gradients, under bf16 autocast on a GPU."""
    import torch

    model.eval()

    def step():
        with torch.no_grad(), precision(device):
            return model(inputs)

    return step


def training_step(model, inputs, labels, device: str) -> Callable[[], object]:
    """Forward and backward pass and fused AdamW, under bf16 autocast on a GPU."""
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


def measure_in_turn(
    make_step: Callable[[str, str, int], Callable[[], object]], names: Sequence[str], options: dict
) -> dict[str, dict[str, dict[int, dict]]]:
    """Memory of several variants one after the other, then their speed in turn.

    Args:
        make_step: (mode, name, depth) -> function that runs the variant's step once.
        names: what is compared.
        options: ``device``, ``repeats``, ``modes`` and ``depths``.

    Returns:
        mode -> name -> depth -> ``seconds`` and ``peak``, bytes above what was held before it was
        built.
    """
    result = {mode: {name: {} for name in names} for mode in options['modes']}
    for mode, name, depth in itertools.product(options['modes'], names, options['depths']):
        peak = _peak(lambda step=(mode, name, depth): make_step(*step), options['device'])
        result[mode][name][depth] = dict(peak=peak)
    set_allocator(USUAL)
    for mode, each in result.items():
        gc.collect()
        variants = itertools.product(names, options['depths'])
        steps = {variant: make_step(mode, *variant) for variant in variants}
        seconds = side_by_side(steps, options['repeats'], options['device'])
        del steps
        for (name, depth), taken in seconds.items():
            each[name][depth]['seconds'] = taken
    return result


def _peak(make: Callable[[], Callable[[], object]], device: str) -> int:
    gc.collect()
    memory = Memory(device)
    step = make()
    for _ in range(2):  # AdamW's state is there from the second step on
        step()
    return memory.peak()


def figures_at_depth(measured: Mapping[str, Mapping], depth: int) -> dict[str, dict[str, float]]:
    """What :func:`measure_in_turn` gave, at one depth: name -> ``seconds`` and ``peak``.

    Depths may be text, as JSON makes them.
    """
    return {
        name: {
            key: at_depth({int(few): each[key] for few, each in of_depth.items()}, depth)
            for key in ('seconds', 'peak')
        }
        for name, of_depth in measured.items()
    }


def number(value: float) -> str:
    """Three digits, without an exponent from 100 on."""
    return f'{value:.3g}' if value < 100 else f'{value:.0f}'
