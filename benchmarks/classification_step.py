"""Speed and memory of the classifier, inference and training, beside timm's EVA of one shape.

PyTorch and the core are all it needs; without timm the baseline is left out. Each size and image
side runs in a process of its own. Where a size is too slow for a CPU, one and two blocks are
measured in place of all.
"""

from __future__ import annotations

import itertools
import json
import sys
from importlib.util import find_spec

from benchmarks._steps import (
    COMPUTED_NOTE,
    autocast_dtype,
    comparison,
    compile_blocks,
    depths_to_measure,
    difference_of,
    figures_at_depth,
    flops_of_passes,
    how,
    inference_step,
    measure_in_turn,
    rows_of_all,
    told_precision,
    training_step,
)
from benchmarks.common import Table, benchmark, read_flag, read_numbers, read_sizes
from benchmarks.measuring import (
    TERA,
    ceilings_note,
    in_child,
    the_device,
)

SIZES = ('base', 'large', 'giant')
SIDES = (224, 336, 560)
PATCH, CLASSES = 14, 1000
TOKENS_AT_ONCE = dict(cpu=512, cuda=8192)  # of a batch
MODES = ('inference', 'training', 'training, recomputed')
# EVA-L is a plain ViT in timm too; the smaller sizes are not there by name and take EVA's code.
TIMM_NAMES = dict(large='eva_large_patch14_196')
TIMM_EVA = 'eva_giant_patch14_224'


def build(whose: str, size: str, side: int, depth: int | None, device: str):
    """A classifier with mean pooling.

    Args:
        whose: 'ours' or 'timm'.
        depth: number of blocks; None is the size's own.
    """
    import torch

    from eva_mm.vit import EVAVisionTransformer, get_size

    shape = get_size(size, patch_size=PATCH, depth=depth)
    with torch.device(device):
        if whose == 'ours':
            return EVAVisionTransformer(shape, img_size=side, num_classes=CLASSES)
        import timm

        return timm.create_model(
            TIMM_NAMES.get(size, TIMM_EVA),
            img_size=side,
            num_classes=CLASSES,
            depth=shape.depth,
            embed_dim=shape.embed_dim,
            num_heads=shape.num_heads,
            mlp_ratio=shape.mlp_dim / shape.embed_dim,
        )


def check_agreement(size: str, side: int, device: str) -> float:
    """Relative difference of the two models' logits with the same weights, one block deep.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    import torch

    ours, theirs = (build(whose, size, side, 1, device) for whose in ('ours', 'timm'))
    return difference_of(ours, theirs, torch.randn(1, 3, side, side, device=device))


def make_step(whose: str, mode: str, size: str, side: int, depth: int, options: dict):
    """Build a model and give the function that runs its step on images of noise."""
    import torch

    device = options['device']
    model = build(whose, size, side, depth, device)
    if options['compile']:
        compile_blocks(model)
    if mode == 'training, recomputed':
        if whose == 'ours':
            model.activation_checkpointing = True
        else:
            model.set_grad_checkpointing(True)
    images = torch.randn(options['batch'], 3, side, side, device=device)
    if mode == 'inference':
        return inference_step(model, images, device)
    labels = torch.randint(CLASSES, (len(images),), device=device)
    return training_step(model, images, labels, device)


def measure(size: str, side: int, options: dict) -> dict[str, dict[str, dict[str, dict]]]:
    """Measure every mode in this process, ours and timm's in turn.

    Returns:
        mode -> whose -> depth -> ``seconds`` per batch and ``peak`` in bytes.
    """
    names = ('ours', 'timm') if options['timm'] else ('ours',)
    if options['timm']:
        check_agreement(size, side, options['device'])
    make_step(names[-1], 'training', size, side, 1, options)()  # loads what the first use loads
    return measure_in_turn(
        lambda mode, whose, depth: make_step(whose, mode, size, side, depth, options),
        names,
        options,
    )


def step_flops(size: str, side: int) -> dict[str, int]:
    """FLOPs per image of each mode, from shapes alone; recomputation does not count."""
    import torch

    model = build('ours', size, side, None, 'meta')
    forward, both = flops_of_passes(model, torch.zeros(1, 3, side, side, device='meta'))
    return dict(zip(MODES, (forward, both, both)))


def batch_of(side: int, device: str) -> int:
    """Images that make about as many tokens at every side."""
    return max(1, TOKENS_AT_ONCE[device] // (side // PATCH) ** 2)


def rows_of(size: str, side: int, options: dict, ceiling: float) -> list[tuple]:
    """One row per mode."""
    from eva_mm.vit import get_size

    flops, depth = step_flops(size, side), get_size(size).depth
    batch = options['batch'] or batch_of(side, options['device'])
    depths = depths_to_measure(depth, flops['training'], options['device'])
    options = dict(options, batch=batch, depths=depths)
    measured = in_child('classification_step', size, str(side), json.dumps(options))
    rows = []
    for mode, each in measured.items():
        found = figures_at_depth(each, depth)
        used = 'ours' in found and batch * flops[mode] / found['ours']['seconds'] / ceiling
        rows.append(
            (
                size, side, batch, mode, how(depths),
                *comparison(found, ('ours', 'timm'), batch),
                f'{flops[mode] / TERA:.2f}',
                f'{100 * used:.0f} %' if used else '',
            )
        )  # fmt: skip
        print(*rows[-1], sep='  ', file=sys.stderr, flush=True)
    return rows


@benchmark(
    'classification_step',
    "images/s, memory and FLOP utilisation of the classifier, beside timm's EVA",
    sizes=read_sizes,
    sides=read_numbers,
    batch=int,
    repeats=int,
    compile=read_flag,
)
def classification_step(
    sizes: tuple[str, ...] = SIZES,
    sides: tuple[int, ...] = SIDES,
    batch: int | None = None,
    repeats: int | None = None,
    compile: bool = False,
) -> list[Table]:
    """Table of sizes, image sides and modes on this machine's GPU, or else its processor."""

    device = the_device()
    with_timm = find_spec('timm') is not None
    ceiling, ceilings = ceilings_note(device, autocast_dtype(device))
    options = dict(
        device=device,
        batch=batch,
        repeats=repeats or (20 if device == 'cuda' else 3),
        compile=compile,
        timm=with_timm,
        modes=MODES,
    )
    rows = rows_of_all(
        itertools.product(sizes, sides), lambda *case: rows_of(*case, options, ceiling)
    )
    header = (
        'size', 'side, px', 'batch', 'what', 'how', 'ours, images/s', 'timm, images/s',
        'times as fast', 'ours, GiB', 'timm, GiB', 'of it', 'TFLOP per image', 'utilisation, ours',
    )  # fmt: skip
    notes = _notes(rows, options, ceilings)
    return [Table(header, rows, 'One step of the classifier', notes, ('timm',))]


def _notes(rows: list[tuple], options: dict, ceilings: str) -> list[str]:
    import torch

    precision = told_precision(options['device'])
    compiled = ', each block compiled' if options['compile'] else ''
    notes = [
        f'{precision}{compiled}, {torch.get_num_threads()} threads, patches of {PATCH} px, '
        f'{CLASSES} classes, mean pooling, images of noise. Training: forward, backward, fused '
        'AdamW, no drop path; recomputed: each block checkpointed. Memory: the peak above the '
        'start, weights included.',
        'Utilisation: counted FLOPs (backward included, recomputation not) over the matrix '
        f"product's ceiling. {ceilings}",
    ]
    if options['timm']:
        notes.append(
            "timm's is its EVA (for large its ViT, as published) at the same size, image side and "
            'weight names; with the same weights the logits of one block agree, which is checked '
            'before each run. Both use the fused attention of PyTorch. They run in turn on a '
            'processor.'
        )
    else:
        notes.append('timm is not installed: its columns are empty.')
    if any(row[4] == 'computed' for row in rows):
        notes.append(COMPUTED_NOTE)
    return notes


if __name__ == '__main__':
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))))
