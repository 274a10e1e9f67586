"""Peak memory of the video classifier: estimated from shapes, or measured where it fits.

Estimates run the recognizer under FakeTensorMode and count what is alive. They are of the whole
model, from normalised clips to the loss, or to the probabilities.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys

from benchmarks.common import (
    GIB,
    Table,
    benchmark,
    peak_rss,
    read_flag,
    read_numbers,
    read_sizes,
    reset_peak_rss,
    rss,
)
from benchmarks.measuring import in_child

CONFIG = 'kinetics/eva_g_k400'
PACKAGES = ('onedl-mmengine', 'mmaction2')
SIZES = ('base', 'large', 'giant')
FRAMES = (8, 16)
INFERENCE = {
    'fp32, 1 view': dict(views=1),
    'fp32, 12 views': dict(views=12),
    'bf16 autocast, 1 view': dict(views=1, autocast=True),
    'bf16 autocast, 12 views': dict(views=12, autocast=True),
}
TRAINING = {
    'fp32, all kept': dict(recomputed=False),
    'fp32, all blocks recomputed': dict(recomputed=True),
    'bf16 autocast, all kept': dict(autocast=True, recomputed=False),
    'bf16 autocast, all blocks recomputed (default)': dict(autocast=True, recomputed=True),
}


def model_config(size: str, frames: int, recomputed: bool = True) -> dict:
    """The leaf's model with another size of backbone."""
    import eva_mm
    from eva_mm.vit import get_size

    model = copy.deepcopy(eva_mm.get_config(CONFIG).model)
    model.backbone.update(size=size, num_frames=frames, activation_checkpointing=recomputed)
    model.cls_head.in_channels = get_size(size).embed_dim
    return model


def build(model_cfg: dict):
    """Build the recognizer, with mmaction2's scope set."""
    import eva_mm.video  # noqa: F401  before mmaction

    from mmaction.registry import MODELS  # isort: skip
    from mmengine.registry import init_default_scope

    init_default_scope('mmaction')
    return MODELS.build(copy.deepcopy(model_cfg))


def make_clips(views: int, frames: int):
    """One video's views as the data preprocessor gives them, and its label."""
    import torch
    from mmaction.structures import ActionDataSample

    return torch.zeros(1, views, 3, frames, 224, 224), [ActionDataSample().set_gt_label(3)]


def estimate_inference(size: str, frames: int, views: int = 1, autocast: bool = False) -> int:
    """Bytes of weights, the clips and the largest moment of one video's forward pass."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from eva_mm.engine.memory import PeakMemory, nbytes

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = build(model_config(size, frames)).eval()
        tensors = [*model.parameters(), *model.buffers()]
        with PeakMemory(tensors) as memory:
            clips, _ = make_clips(views, frames)
            with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
                tokens = model.backbone(clips[0])
                model.cls_head(tokens).softmax(dim=1).mean(dim=0)
        return sum(map(nbytes, tensors)) + memory.peak


def estimate_training(
    size: str, frames: int, autocast: bool = False, recomputed: bool = True
) -> int:
    """Bytes of weights, AdamW's state and the largest moment of one clip's step."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from eva_mm.engine.memory import PeakMemory, nbytes

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build(model_config(size, frames, recomputed)).train()
        tensors = [*model.parameters(), *model.buffers()]
        trainable = sum(map(nbytes, model.parameters()))
        with PeakMemory(tensors) as memory:
            clips, _ = make_clips(1, frames)
            with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
                logits = model.cls_head(model.backbone(clips[0]))
            target = torch.zeros(1, dtype=torch.int64)
            torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1).backward()
    return sum(map(nbytes, tensors)) + 2 * trainable + memory.peak


# --------------------------------------------------------------------------------------- measured


def measure(mode: str, size: str, frames: int) -> dict:
    """Run the recognizer for real in fp32 on this CPU, from clips to probabilities or to the step.

    Returns:
        ``peak``: most bytes that the process held above what it held before the model.
    """
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    cfg = model_config(size, frames)
    small = copy.deepcopy(cfg)
    small.backbone.update(embed_dim=16, depth=1, num_heads=2, mlp_dim=16)
    small.cls_head.in_channels = 16
    run(build(small), mode, frames)  # loads what is loaded at first use
    reset_peak_rss()
    start = rss()
    run(build(cfg), mode, frames)
    return dict(peak=peak_rss() - start)


def run(model, mode: str, frames: int) -> None:
    """One video's forward pass, or two steps: AdamW's state is there from the second one on."""
    import torch

    clips, samples = make_clips(1, frames)
    if mode == 'inference':
        with torch.no_grad():
            model.eval()(clips, samples, mode='predict')
        return
    optimizer = torch.optim.AdamW(model.train().parameters(), foreach=False)
    for _ in range(2):
        loss, _ = model.parse_losses(model(clips, copy.deepcopy(samples), mode='loss'))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


CHECKS = (('inference', 'base', 16), ('training', 'base', 8))


def check_table(checks=CHECKS) -> Table:
    """Estimates beside measured peaks of the same, in fp32 on the CPU."""
    rows = []
    for mode, size, frames in checks:
        estimate = {'inference': estimate_inference, 'training': estimate_training}[mode]
        estimated = estimate(size, frames)
        measured = in_child('video_memory', mode, size, str(frames))['peak']
        rows.append(
            (mode, size, frames, f'{estimated / GIB:.2f}', f'{measured / GIB:.2f}',
             f'{100 * (estimated / measured - 1):+.0f} %')
        )  # fmt: skip
    header = ('what', 'size', 'frames', 'estimated, GiB', 'measured, GiB', 'difference')
    notes = (
        'fp32, one clip, all blocks recomputed in training; measured: the most that the process '
        'held above its start.',
    )
    return Table(header, rows, 'Estimate and measured peak', notes, PACKAGES)


@benchmark(
    'video_memory',
    'peak memory of the video classifier, inference and training, estimated; two sizes measured',
    sizes=read_sizes,
    frames=read_numbers,
    measured=read_flag,
)
def video_memory(
    sizes: tuple[str, ...] = SIZES, frames: tuple[int, ...] = FRAMES, measured: bool = True
) -> list[Table]:
    """Tables of inference, training and the check."""
    modes = {
        'Inference': (INFERENCE, estimate_inference),
        'Training': (TRAINING, estimate_training),
    }
    tables = []
    for title, (variants, estimate) in modes.items():
        rows = []
        for size, (name, options) in itertools.product(sizes, variants.items()):
            peaks = [f'{estimate(size, count, **options) / GIB:.1f}' for count in frames]
            rows.append((size, name, *peaks))
            print(*rows[-1], sep='  ', file=sys.stderr, flush=True)
        header = ('size', 'with', *(f'{count} x 224 x 224, GiB' for count in frames))
        notes = [
            'Estimated from shapes (FakeTensorMode), one video per GPU, 400 classes; '
            'CUDA context, workspaces and fragmentation come on top.'
        ]
        if title == 'Training':
            notes.append('Weights, gradients and AdamW in fp32: 16 bytes per parameter.')
        tables.append(Table(header, rows, f'{title}, estimated', notes, PACKAGES))
    return [*tables, check_table()] if measured else tables


if __name__ == '__main__':
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
