"""Speed and memory of a pretraining step: student and teacher apart, on whatever device is there.

The models are those of the leaf configs at full size, with random weights. Each size runs in a
process of its own. Where a size is too slow for a CPU, one block is measured and counted as often
as the model has it.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable

from benchmarks import measuring
from benchmarks.common import GIB, Table, benchmark, read_flag, read_sizes
from benchmarks.measuring import (
    USUAL,
    Memory,
    ceilings_note,
    in_child,
    measure_time,
    set_allocator,
    the_device,
)

CONFIGS = dict(
    giant='pretrain/eva_g_merged30m',
    large='pretrain/eva_l_in21k',
    base='pretrain/pilot_regress_short',
)
MASKED = 105  # of 256 patches, as published
COMPUTED_ON_CPU = ('giant',)
PACKAGES = ('onedl-mmengine', 'open_clip_torch')


def model_config(size: str, depth: int | None = None, recompute: bool = False) -> dict:
    """The leaf's model with a random teacher.

    Args:
        size: a key of :data:`CONFIGS`.
        depth: number of blocks in place of the size's own.
        recompute: activation checkpointing of every block.
    """
    import eva_mm
    from eva_mm.vit import get_size

    model = copy.deepcopy(eva_mm.get_config(CONFIGS[size]).model)
    model.update(activation_checkpointing=recompute)
    model.teacher.update(weights=None)
    if depth is not None:
        model.size = dataclasses.replace(get_size(model.size), depth=depth)
    return model


def build(model_cfg: dict, device: str):
    """Build a student on a device; its teacher gets no weights yet."""
    import torch
    from mmengine.registry import MODELS

    import eva_mm.pretraining  # noqa: F401  registers the models

    with torch.device(device):
        return MODELS.build(copy.deepcopy(model_cfg)).train()


def make_batch(model, batch: int, device: str) -> dict:
    """Images of noise, masks and the teacher's images, as the data preprocessor gives them."""
    import torch

    patches = model.pos_embed_grid[0] * model.pos_embed_grid[1]
    side = model.pos_embed_grid[0] * model.size.patch_size
    noise = torch.rand(batch, patches, device=device)
    hidden = torch.zeros(batch, patches, dtype=torch.bool, device=device)
    hidden.scatter_(1, noise.argsort(1)[:, : MASKED * patches // 256], True)
    return dict(
        image=torch.randn(batch, 3, side, side, device=device),
        masking=dict(mask=hidden, noise=noise),
        teacher_image=torch.randn(batch, 3, *model.teacher.image_size, device=device),
        features=torch.randn(batch, patches, model.teacher.feature_dim, device=device),
    )


def student_loss(model, data: dict):
    """Forward pass and loss, with the teacher's features given."""
    prediction, where = model.predict_patches(data['image'], **data['masking'])
    return model.target.loss(prediction, data['features'], where)['loss']


# ------------------------------------------------------------------------------------------ counts


def count_flops(model_cfg: dict) -> dict[str, float]:
    """FLOPs per image of matrix products and attention, from shapes alone.

    Returns:
        ``student`` (forward and backward pass, without recomputation), ``teacher`` (forward).
    """
    import torch

    model = build({**model_cfg, 'activation_checkpointing': False}, 'meta')
    data = make_batch(model, 1, 'meta')
    student = measuring.count_flops(lambda: student_loss(model, data).backward())
    teacher = model.teacher
    with torch.device('meta'):
        teacher.tower = teacher._build()
    with torch.no_grad():
        taught = measuring.count_flops(lambda: teacher(data['teacher_image']))
    return dict(student=student, teacher=taught)


# ------------------------------------------------------------------------------------- measurement


def measure_student(model_cfg: dict, options: dict) -> dict:
    """Seconds and peak memory of forward, backward, clipping and update, as in training."""
    from mmengine.optim import build_optim_wrapper

    import eva_mm.engine  # noqa: F401  registers the wrapper
    from eva_mm.engine.compilation import compile_blocks

    device = options['device']
    memory = Memory(device)
    model = build(model_cfg, device)
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='BF16OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.98), fused=True),
            clip_grad=dict(max_norm=3.0),
        ),
    )
    data = make_batch(model, options['batch'], device)
    if options['compile']:
        compile_blocks(model)

    def step():
        with wrapper.optim_context(model):
            loss = student_loss(model, data)
        wrapper.update_params(loss)

    return measure_step(step, memory, options)


def measure_step(step: Callable[[], object], memory: Memory, options: dict) -> dict:
    """Peak of two steps, AdamW's state being there from the second one on, then the time of some.

    In this order, since time is taken with freed memory kept, as in an ordinary run.
    """
    step()
    step()
    peak = memory.peak()
    set_allocator(USUAL)
    return dict(seconds=measure_time(step, options['steps'], options['device']), peak=peak)


def measure_teacher(model_cfg: dict, options: dict) -> dict:
    """Seconds and peak memory of the frozen teacher's forward pass."""
    import torch

    from eva_mm.engine.compilation import compile_blocks

    device = options['device']
    memory = Memory(device)
    teacher = build({**model_cfg}, 'meta').teacher
    teacher.load(device)
    images = torch.randn(options['batch'], 3, *teacher.image_size, device=device)

    if options['compile']:
        compile_blocks(teacher)

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=options['bf16']):
            teacher(images)

    return measure_step(step, memory, options)


def measure(size: str, part: str, options: dict) -> dict:
    """Measure a part of a size's step in this process.

    Returns:
        ``seconds`` per batch, ``peak`` in bytes (None where computed) and ``computed``.
    """
    if part == 'teacher':
        return measure_teacher(model_config(size), options) | dict(computed=False)
    recompute = options['recompute']
    if options['device'] == 'cuda' or size not in COMPUTED_ON_CPU:
        return measure_student(model_config(size, None, recompute), options) | dict(computed=False)
    from eva_mm.vit import get_size

    one, two = (
        measure_student(model_config(size, depth, recompute), options)['seconds']
        for depth in (1, 2)
    )
    depth = get_size(size).depth
    return dict(seconds=one + (depth - 1) * (two - one), peak=None, computed=True)


def rows_of_size(size: str, options: dict, ceiling: float) -> list[tuple]:
    """Rows of student, teacher and both."""
    flops = count_flops(model_config(size))
    results = {
        part: in_child('pretrain_step', size, part, json.dumps(options))
        for part in ('student', 'teacher')
    }
    both = dict(
        seconds=sum(result['seconds'] for result in results.values()),
        peak=None,
        computed=any(result['computed'] for result in results.values()),
    )
    flops['both'] = sum(flops.values())
    rows = []
    for part, result in [*results.items(), ('both', both)]:
        speed = options['batch'] / result['seconds']
        rows.append(
            (
                size,
                part,
                'computed' if result['computed'] else 'measured',
                f'{speed:.3g}' if speed < 100 else f'{speed:.0f}',
                f'{flops[part] / 1e12:.2f}',
                f'{100 * speed * flops[part] / ceiling:.0f} %',
                '' if result['peak'] is None else f'{result["peak"] / GIB:.1f}',
            )
        )
    return rows


@benchmark(
    'pretrain_step',
    'images/s, memory and FLOP utilisation of a pretraining step, student and teacher apart',
    sizes=read_sizes,
    batch=int,
    steps=int,
    recompute=read_flag,
    compile=read_flag,
)
def pretrain_step(
    sizes: tuple[str, ...] = tuple(CONFIGS),
    batch: int | None = None,
    steps: int | None = None,
    recompute: bool = False,
    compile: bool = False,
) -> list[Table]:
    """Table of the sizes on this machine's GPU, or else its processor."""
    import torch

    from eva_mm.engine.optim_wrapper import gpu_has_bf16

    device = the_device()
    bf16 = device == 'cuda' and gpu_has_bf16()
    batch = batch or (32 if device == 'cuda' else 2)
    options = dict(
        device=device,
        bf16=bf16,
        batch=batch,
        steps=steps or (20 if device == 'cuda' else 3),
        recompute=recompute,
        compile=compile,
    )
    dtype = torch.bfloat16 if bf16 else torch.float32
    ceiling, ceilings = ceilings_note(device, dtype)
    rows = [row for size in sizes for row in rows_of_size(size, options, ceiling)]
    header = (
        'size', 'part', 'how', 'images/s', 'TFLOP per image', 'utilisation', 'peak, GiB'
    )  # fmt: skip
    name = 'bf16 autocast' if bf16 else 'fp32'
    extras = [
        text for text, on in (('recomputed blocks', recompute), ('blocks compiled', compile)) if on
    ]
    notes = [
        f'{name}, batches of {batch}, {torch.get_num_threads()} threads'
        + ''.join(f', {text}' for text in extras)
        + '; models, masks and teachers of '
        + ', '.join(CONFIGS[size] for size in sizes)
        + '. Student: forward, backward, clipping, fused AdamW. Loading images is not in it.',
        'Utilisation: counted FLOPs (backward included, recomputation not) over the matrix '
        f"product's ceiling. {ceilings}",
    ]
    if any(row[2] == 'computed' for row in rows):
        notes.append(
            'Computed: from steps of one and of two blocks; every further block as the second.'
        )
    return [Table(header, rows, 'One step of pretraining', notes, PACKAGES)]


if __name__ == '__main__':
    print(json.dumps(measure(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))))
