"""Peak memory of the cascade detector: estimated from shapes, or measured where it fits.

Estimates run the detector's modules under FakeTensorMode and count what is alive. Features are the
model's own; boxes and masks, whose number depends on the image, are taken at the config's limits.
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

CONFIG = 'coco/eva_cascade'
SIDES = (1024, 1280, 1536)
SIZES = ('base', 'large', 'giant')
INFERENCE = {
    'fp32': dict(),
    'bf16 autocast': dict(autocast=True),
    'bf16 weights of the backbone': dict(autocast=True, bf16_weights=True),
}
TRAINING = {
    'all kept': dict(autocast=True, recomputed='none'),
    'every second block recomputed': dict(autocast=True, recomputed='half'),
    'all blocks recomputed (default)': dict(autocast=True, recomputed='all'),
    'all recomputed, lower half frozen': dict(autocast=True, recomputed='all', frozen=True),
    'all recomputed, accumulation': dict(autocast=True, recomputed='all', accumulate=True),
    'all recomputed, fp32': dict(recomputed='all'),
}


def model_config(size: str, side: int, recomputed: str = 'all', frozen: bool = False, **_) -> dict:
    """The leaf's model at another size of backbone and image; every fourth block is global."""
    import eva_mm
    from eva_mm.vit import get_size

    model = copy.deepcopy(eva_mm.get_config(CONFIG).model)
    depth = get_size(size).depth
    blocks = {'none': False, 'half': list(range(0, depth, 2)), 'all': True}
    model.backbone.update(
        size=size, img_size=side, global_block_indexes=None,
        activation_checkpointing=blocks[recomputed], frozen_blocks=depth // 2 if frozen else 0,
    )  # fmt: skip
    model.data_preprocessor.pad_size = (side, side)
    model.neck.in_channels = get_size(size).embed_dim
    return model


def build(model_cfg: dict):
    """Build the detector, with mmdet's scope set."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    import eva_mm.detection  # noqa: F401  registers its modules

    init_default_scope('mmdet')
    return MODELS.build(copy.deepcopy(model_cfg))


def _features_and_heads(model, images, boxes: int, masks: int, autocast: bool) -> list:
    """Outputs of a forward pass with a given number of boxes per stage and of masks."""
    import torch

    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
        features = model.extract_feat(images)
    features = tuple(level.float() for level in features)
    outputs = [*itertools.chain.from_iterable(model.rpn_head(features))]
    grad = torch.is_grad_enabled()
    for head in model.roi_head.bbox_head:
        stage = head(torch.zeros(boxes, 256, 7, 7, requires_grad=grad))
        outputs += stage if grad else []
    pooled = torch.zeros(masks, 256, 14, 14, requires_grad=grad)
    outputs.append(model.roi_head.mask_head(pooled, torch.zeros(masks, dtype=torch.long)))
    return outputs


def estimate_inference(
    size: str, side: int, autocast: bool = False, bf16_weights: bool = False
) -> int:
    """Bytes of weights and of the largest moment of one image's forward pass."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from eva_mm.engine.memory import PeakMemory, nbytes

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model_cfg = model_config(size, side)
        model = build(model_cfg)
        if bf16_weights:  # built so, because `to` cannot swap fake tensors
            torch.set_default_dtype(torch.bfloat16)
            model.backbone = build(model_cfg.backbone)
            torch.set_default_dtype(torch.float32)
        model.eval()
        tensors = [*model.parameters(), *model.buffers()]
        cfg = model.test_cfg
        with PeakMemory(tensors) as memory:
            _features_and_heads(
                model, torch.zeros(1, 3, side, side), cfg.rpn.max_per_img, cfg.rcnn.max_per_img,
                autocast,
            )  # fmt: skip
        return sum(map(nbytes, tensors)) + memory.peak


def estimate_training(
    size: str, side: int, autocast: bool = False, accumulate: bool = False, **options
) -> int:
    """Bytes of weights, AdamW's state and the largest moment of one image's step.

    With ``accumulate`` the gradients of the images before are alive from the start.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from eva_mm.engine.memory import PeakMemory, nbytes

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build(model_config(size, side, **options)).train()
        tensors = [*model.parameters(), *model.buffers()]
        trained = [param for param in model.parameters() if param.requires_grad]
        trainable = sum(map(nbytes, trained))
        for param in trained if accumulate else ():
            param.grad = torch.zeros_like(param)
            tensors.append(param.grad)
        sampler = model.train_cfg.rcnn[0].sampler
        with PeakMemory(tensors) as memory:
            outputs = _features_and_heads(
                model, torch.zeros(1, 3, side, side), sampler.num,
                int(sampler.num * sampler.pos_fraction), autocast,
            )  # fmt: skip
            sum(output.float().sum() for output in outputs).backward()
    return sum(map(nbytes, tensors)) + 2 * trainable + memory.peak


# --------------------------------------------------------------------------------------- measured


def measure(mode: str, size: str, side: int) -> dict:
    """Run the detector for real in fp32 on this CPU, from images to detections or to the step.

    Returns:
        ``peak``: most bytes that the process held above what it held before the model.
    """
    import numpy as np
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    torch.set_num_threads(1)
    torch.manual_seed(0)
    cfg = model_config(size, side)
    build(cfg.copy())  # loads what is loaded at first use
    reset_peak_rss()
    start = rss()
    model = build(cfg)
    image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(side, side), ori_shape=(side, side), pad_shape=(side, side),
            scale_factor=(1.0, 1.0), batch_input_shape=(side, side),
        )
    )  # fmt: skip
    if mode == 'inference':
        model.eval()
        model.roi_head.test_cfg.score_thr = 1.0  # random weights: no masks by the thousand
        with torch.no_grad():
            model.test_step(dict(inputs=[image], data_samples=[sample]))
        return dict(peak=peak_rss() - start)
    corners = torch.arange(8)[:, None] * torch.tensor([20.0, 10.0])
    sample.gt_instances = InstanceData(
        bboxes=torch.cat((corners, corners + side / 3), dim=1),
        labels=torch.arange(8),
        masks=BitmapMasks(np.ones((8, side, side), np.uint8), side, side),
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
    for _ in range(2):  # AdamW's state is there from the second step on
        data = model.train().data_preprocessor(
            dict(inputs=[image], data_samples=[copy.deepcopy(sample)]), True
        )
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(peak=peak_rss() - start)


CHECKS = (('inference', 'base', 1024), ('training', 'base', 512))


def check_table(checks=CHECKS) -> Table:
    """Estimates beside measured peaks of the same, in fp32 on the CPU."""
    from eva_mm.rel_pos_kernels import use_kernel

    rows = []
    for mode, size, side in checks:
        estimate = {'inference': estimate_inference, 'training': estimate_training}[mode]
        with use_kernel('blocked'):  # the processor's
            estimated = estimate(size, side)
        measured = in_child('detector_memory', mode, size, str(side))['peak']
        rows.append(
            (mode, size, side, f'{estimated / GIB:.2f}', f'{measured / GIB:.2f}',
             f'{100 * (estimated / measured - 1):+.0f} %')
        )  # fmt: skip
    header = ('what', 'size', 'side, px', 'estimated, GiB', 'measured, GiB', 'difference')
    notes = ('fp32, one image; measured: the most that the process held above its start.',)
    return Table(header, rows, 'Estimate and measured peak', notes, ('onedl-mmdetection',))


@benchmark(
    'detector_memory',
    'peak memory of the cascade detector, inference and training, estimated; two sizes measured',
    sizes=read_sizes,
    sides=read_numbers,
    measured=read_flag,
)
def detector_memory(
    sizes: tuple[str, ...] = SIZES, sides: tuple[int, ...] = SIDES, measured: bool = True
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
            peaks = [f'{estimate(size, side, **options) / GIB:.1f}' for side in sides]
            rows.append((size, name, *peaks))
            print(*rows[-1], sep='  ', file=sys.stderr, flush=True)
        header = ('size', 'with', *(f'{side} px, GiB' for side in sides))
        notes = [
            'Estimated from shapes (FakeTensorMode), one image per GPU, 80 classes; '
            'CUDA context, workspaces and fragmentation come on top.'
        ]
        tables.append(Table(header, rows, f'{title}, estimated', notes))
    return [*tables, check_table()] if measured else tables


if __name__ == '__main__':
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
