"""Speed and memory of the video model: joint attention over all frames, fused and written out.

PyTorch and the core are all it needs: with tubelets of one frame a clip's patches are those of its
frames. Each size runs in a process of its own. Where a size is too slow for a CPU, one and two
blocks are measured in place of all.
"""

from __future__ import annotations

import json
import sys

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
from benchmarks.common import Table, benchmark, read_flag, read_sizes
from benchmarks.measuring import (
    TERA,
    ceilings_note,
    in_child,
    the_device,
)

SIZES = ('tiny', 'base', 'giant')
FRAMES, SIDE, CLASSES = 16, 224, 400
MODES = ('inference', 'training', 'training, recomputed')
WAYS = ('ours', 'explicit')


def build(size: str, frames: int, side: int, depth: int | None, device: str, explicit=False):
    """A classifier of clips, from normalised clips (B, 3, T, H, W) to logits.

    Args:
        depth: number of blocks; None is the size's own.
        explicit: write all scores of the attention to memory.
    """
    import torch

    from eva_mm.vit import EVAVisionTransformer, get_size

    class ClipTransformer(EVAVisionTransformer):
        def embed(self, clip):
            batch, _, steps = clip.shape[:3]
            x = self.patch_embed(clip.transpose(1, 2).flatten(0, 1))
            grid = (steps, *x.shape[-2:])
            x = x.flatten(2).transpose(1, 2).reshape(batch, -1, x.shape[1])
            x = torch.cat((self.cls_token.expand(batch, -1, -1).to(x.dtype), x), dim=1)
            return x + self.pos_embed, grid

    with torch.device(device):
        model = ClipTransformer(get_size(size, depth=depth), img_size=side, num_classes=CLASSES)
        tokens = 1 + frames * model.pos_embed_grid[0] * model.pos_embed_grid[1]
        model.pos_embed = torch.nn.Parameter(torch.randn(1, tokens, model.size.embed_dim) / 50)
    if explicit:
        from benchmarks.explicit import make_explicit

        make_explicit(model)
    return model


def check_agreement(size: str, frames: int, side: int, device: str) -> float:
    """Relative difference of the two ways' logits with the same weights, one block deep.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    import torch

    ours, plain = (build(size, frames, side, 1, device, way == 'explicit') for way in WAYS)
    return difference_of(ours, plain, torch.randn(1, 3, frames, side, side, device=device))


def make_step(way: str, mode: str, size: str, depth: int, options: dict):
    """Build a model and give the function that runs its step on a clip of noise."""
    import torch

    device, frames, side = options['device'], options['frames'], options['side']
    model = build(size, frames, side, depth, device, way == 'explicit')
    if options['compile']:
        compile_blocks(model)
    model.activation_checkpointing = mode == 'training, recomputed'
    clips = torch.randn(options['batch'], 3, frames, side, side, device=device)
    if mode == 'inference':
        return inference_step(model, clips, device)
    labels = torch.randint(CLASSES, (len(clips),), device=device)
    return training_step(model, clips, labels, device)


def measure(size: str, options: dict) -> dict[str, dict[str, dict[int, dict]]]:
    """Measure every mode in this process, both ways in turn.

    Returns:
        mode -> way -> depth -> ``seconds`` per batch and ``peak`` in bytes.
    """
    check_agreement(size, 1, options['side'], options['device'])
    small = dict(options, frames=1)
    make_step('explicit', 'training', size, 1, small)()  # loads what the first use loads
    return measure_in_turn(
        lambda mode, way, depth: make_step(way, mode, size, depth, options), WAYS, options
    )


def step_flops(size: str, frames: int, side: int) -> dict[str, int]:
    """FLOPs per clip of each mode, from shapes alone; recomputation does not count."""
    import torch

    model = build(size, frames, side, None, 'meta')
    forward, both = flops_of_passes(model, torch.zeros(1, 3, frames, side, side, device='meta'))
    return dict(zip(MODES, (forward, both, both)))


def rows_of(size: str, options: dict, ceiling: float) -> list[tuple]:
    """One row per mode."""
    from eva_mm.vit import get_size

    depth, flops = get_size(size).depth, step_flops(size, options['frames'], options['side'])
    depths = depths_to_measure(depth, flops['training'], options['device'])
    options = dict(options, depths=depths)
    measured = in_child('video_step', size, json.dumps(options))
    rows = []
    for mode, each in measured.items():
        found = figures_at_depth(each, depth)
        batch = options['batch']
        used = 'ours' in found and batch * flops[mode] / found['ours']['seconds'] / ceiling
        rows.append(
            (
                size, mode, how(depths), *comparison(found, WAYS, batch),
                f'{flops[mode] / TERA:.2f}',
                f'{100 * used:.0f} %' if used else '',
            )
        )  # fmt: skip
        print(*rows[-1], sep='  ', file=sys.stderr, flush=True)
    return rows


@benchmark(
    'video_step',
    'clips/s and memory of the video model, beside attention with its scores written out',
    sizes=read_sizes,
    frames=int,
    side=int,
    batch=int,
    repeats=int,
    compile=read_flag,
)
def video_step(
    sizes: tuple[str, ...] = SIZES,
    frames: int = FRAMES,
    side: int = SIDE,
    batch: int = 1,
    repeats: int | None = None,
    compile: bool = False,
) -> list[Table]:
    """Table of sizes and modes on this machine's GPU, or else its processor."""
    import torch

    device = the_device()
    options = dict(
        device=device,
        frames=frames,
        side=side,
        batch=batch,
        repeats=repeats or (20 if device == 'cuda' else 2),
        compile=compile,
        modes=MODES,
    )
    ceiling, ceilings = ceilings_note(device, autocast_dtype(device))
    rows = rows_of_all(zip(sizes), lambda size: rows_of(size, options, ceiling))
    header = (
        'size', 'what', 'how', 'ours, clips/s', 'explicit, clips/s', 'times as fast', 'ours, GiB',
        'explicit, GiB', 'of it', 'TFLOP per clip', 'utilisation, ours',
    )  # fmt: skip
    notes = [
        f'{told_precision(device)}{", each block compiled" * compile}, '
        f'{torch.get_num_threads()} threads, batches of {batch} clips of {frames} x {side} x '
        f'{side} px, all tokens attending to all; noise for clips. Training: forward, backward, '
        'fused AdamW, no drop path; recomputed: each block checkpointed. Memory: the peak above '
        'the start, weights included.',
        'Explicit: the same model with the scores, and their softmax, written to memory. With the '
        'same weights the logits of one block agree, which is checked before. On a '
        'processor they run in turn.',
        'Utilisation: counted FLOPs (backward included, recomputation not) over the matrix '
        f"product's ceiling. {ceilings}",
    ]
    if any(row[2] == 'computed' for row in rows):
        notes.append(COMPUTED_NOTE)
    return [Table(header, rows, 'One step of the video model', notes)]


if __name__ == '__main__':
    print(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]))))
