"""Where the time of a detector goes: a training step, a test image, and masks after soft-NMS.

The models are those of leaf configs at full size, with random weights. What depends on a trained
model is given: proposals (a quarter around the objects), the scores and masks that NMS and pasting
see. The layers that would make them run all the same. Each size runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks._detector_inputs import (
    OBJECTS,
    PROPOSALS,
    give_masks,
    give_proposals,
    give_scores,
    make_data,
    make_objects,
    make_proposals,
)
from benchmarks._steps import at_depth
from benchmarks.common import GIB, Table, benchmark, read_sizes
from benchmarks.measuring import USUAL, Memory, in_child, set_allocator, the_device

CONFIG = 'lvis/eva_cascade'
SOFT_NMS_CONFIG = 'coco/eva_cascade_1536_test_seg'
SIZES = ('base', 'giant')
COMPUTED_ON_CPU = ('large', 'giant')
PACKAGES = ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection')
BACKBONE_PARTS = ('backbone', 'backbone, backward', 'update')


class Clock:
    """Seconds of named parts, each without the parts inside it."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, {}
        self._names, self._last = [], 0.0

    def _charge(self) -> None:
        if self.device == 'cuda':
            import torch

            torch.cuda.synchronize()
        now = time.perf_counter()
        if self._names:
            name = self._names[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge what runs inside to a part."""
        self._charge()
        self._names.append(name)
        try:
            yield
        finally:
            self._charge()
            self._names.pop()

    def turn(self, before: str, after: str) -> None:
        """The part that runs ends where another begins, if it is ``before``."""
        if self._names and self._names[-1] == before:
            self._charge()
            self._names[-1] = after

    def wrap(self, owner: object, method: str, name: str) -> None:
        """Charge every call of an object's method to a part."""
        inner = getattr(owner, method)

        def timed(*args, **kwargs):
            with self.part(name):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)


# ------------------------------------------------------------------------------------ the detector


def model_config(size: str, side: int, config: str = CONFIG, blocks: str | None = None):
    """A leaf's config with another size of backbone and image.

    Args:
        blocks: what the backbone has in place of the size's own blocks: 'w' for each with windows,
            'g' for each global one.
    """
    import eva_mm
    from eva_mm.vit import get_size

    cfg = eva_mm.get_config(config)
    model, shape = cfg.model, get_size(size)
    if blocks is not None:
        shape = dataclasses.replace(shape, depth=len(blocks))
    layout = None if blocks is None else [i for i, kind in enumerate(blocks) if kind == 'g']
    model.backbone.update(size=shape, img_size=side, global_block_indexes=layout)
    model.data_preprocessor.pad_size = (side, side)
    model.neck.in_channels = shape.embed_dim
    loss = model.roi_head.bbox_head.loss_cls
    if loss.type == 'FederatedLoss':
        loss.class_image_counts = [1] * loss.num_classes
    return cfg


def build(model_cfg: dict, device: str):
    """Build a model on a device, with mmdet's scope set."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    import eva_mm.detection  # noqa: F401  registers its modules

    init_default_scope('mmdet')
    model = MODELS.build(copy.deepcopy(model_cfg))
    model.init_weights()
    return model.to(device)


# ------------------------------------------------------------------------------------------- parts


def clock_forward(clock: Clock, model) -> None:
    """Charge what training and testing share."""
    clock.wrap(model.data_preprocessor, 'forward', 'preprocessor')
    clock.wrap(model.backbone, 'forward', 'backbone')
    clock.wrap(model.neck, 'forward', 'pyramid')


def clock_backward(clock: Clock, model, wrapper) -> None:
    """Charge the backward pass to heads, pyramid and backbone, and the update.

    Autograd runs the later layers first, so that the first gradient to reach a level of the
    pyramid tells that the heads are done, and one that reaches the backbone's map the pyramid.
    """
    names = [f'{name}, backward' for name in ('heads', 'pyramid', 'backbone')]

    def watch(module, before: str, after: str) -> None:
        def hook(_, __, outputs):
            for output in outputs:
                output.register_hook(lambda grad: clock.turn(before, after))

        module.register_forward_hook(hook)

    watch(model.neck, names[0], names[1])
    watch(model.backbone, names[1], names[2])
    clock.wrap(wrapper, 'backward', names[0])
    clock.wrap(wrapper, 'step', 'update')
    clock.wrap(wrapper, 'zero_grad', 'update')


def training_run(cfg, side: int, device: str, clock: Clock) -> Callable[[], object]:
    """The function that runs one step, parts charged."""
    from mmengine.optim import build_optim_wrapper

    model = build(cfg.model, device).train()
    give_proposals(model, 'loss_and_predict', side)
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    clock_forward(clock, model)
    clock.wrap(model.rpn_head, 'loss_and_predict', 'RPN')
    clock.wrap(model.roi_head, 'loss', 'box stages')
    clock.wrap(model.roi_head, '_mask_loss', 'mask head')
    clock_backward(clock, model, wrapper)
    data = make_data(side, model.roi_head.bbox_head[0].num_classes, True)
    return lambda: model.train_step(copy.deepcopy(data), wrapper)


def test_run(cfg, side: int, device: str, clock: Clock) -> Callable[[], object]:
    """The function that runs one test image, parts charged."""
    import torch

    model = build(cfg.model, device).eval()
    roi_head = model.roi_head
    give_proposals(model, 'predict', side)
    give_scores(roi_head, 1, 0.0, roi_head.test_cfg.score_thr)
    give_masks(roi_head)
    clock_forward(clock, model)
    clock.wrap(model.rpn_head, 'predict', 'RPN')
    clock.wrap(roi_head, 'predict_bbox', 'box stages')
    clock_postprocess(clock, roi_head)
    data = make_data(side, roi_head.bbox_head[0].num_classes, False)

    def run():
        with torch.no_grad():
            return model.test_step(copy.deepcopy(data))

    return run


def clock_postprocess(clock: Clock, roi_head) -> None:
    """Charge what follows the box stages."""
    clock.wrap(roi_head, '_select', 'NMS')
    clock.wrap(roi_head, 'predict_mask_probs', 'mask head')
    clock.wrap(roi_head, '_to_image', 'masks into the image')


RUNS = dict(training=training_run, test=test_run)


def measure_parts(mode: str, size: str, options: dict, blocks: str | None = None) -> dict:
    """Median seconds of each part of a step in this process, and the peak above the start."""
    device, side = options['device'], options['side']
    cfg = model_config(size, side, options['config'], blocks)
    if options['masks']:
        cfg.model.test_cfg.rcnn.max_per_img = options['masks']
    memory, clock = Memory(device), Clock(device)
    run = RUNS[mode](cfg, side, device, clock)
    run()
    if mode == 'training':
        run()  # AdamW's state is there from the second step on
    peak, runs = memory.peak(), []
    set_allocator(USUAL)
    for _ in range(options['repeats']):
        clock.seconds = {}
        with clock.part('rest'):
            run()
        runs.append(clock.seconds)
    seconds = {part: statistics.median(each[part] for each in runs) for part in runs[0]}
    return dict(seconds=seconds, peak=peak)


def measure_backbone(mode: str, size: str, options: dict, blocks: str) -> dict[str, float]:
    """Seconds of forward pass, backward pass and update of a backbone alone."""
    import torch

    device, side = options['device'], options['side']
    backbone = build(model_config(size, side, options['config'], blocks).model.backbone, device)
    training = mode == 'training'
    backbone.train(training)
    trained = [param for param in backbone.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    set_allocator(USUAL)
    image = torch.randn(1, 3, side, side, device=device)
    clock, found = Clock(device), []
    for repeat in range(1 + options['repeats']):
        clock.seconds = {}
        with torch.set_grad_enabled(training):
            with clock.part('backbone'):
                (feature,) = backbone(image)
            if training:
                with clock.part('backbone, backward'):
                    feature.sum().backward()
                with clock.part('update'):
                    optimizer.step()
                    optimizer.zero_grad()
        if repeat:
            found.append(clock.seconds)
    return {part: statistics.median(each[part] for each in found) for part in found[0]}


def measure(mode: str, size: str, options: dict) -> dict:
    """Measure a mode's parts in this process.

    Returns:
        ``seconds`` of each part, ``peak`` in bytes (None where computed) and ``computed``.
    """
    if options['device'] == 'cuda' or size not in COMPUTED_ON_CPU:
        return measure_parts(mode, size, options) | dict(computed=False)
    from eva_mm.vit import get_size

    depth = get_size(size).depth
    num_global = depth // 4  # the last of every four
    seconds = measure_parts(mode, size, options, 'w')['seconds']
    one, two, both = (measure_backbone(mode, size, options, blocks) for blocks in ('w', 'ww', 'wg'))
    for part in one:
        windows = at_depth({1: one[part], 2: two[part]}, depth - num_global)
        seconds[part] += windows + num_global * (both[part] - one[part]) - one[part]
    return dict(seconds=seconds, peak=None, computed=True)


def rows_of(mode: str, size: str, options: dict) -> list[tuple]:
    """One row per part, and one for all."""
    result = in_child('detector_step', mode, size, json.dumps(options))
    seconds = result['seconds']
    whole = sum(seconds.values())
    computed = result['computed']
    rows = [
        (
            size, mode, part, f'{taken:.2f}', f'{100 * taken / whole:.0f} %',
            'computed' if computed and part in BACKBONE_PARTS else 'measured', '',
        )
        for part, taken in sorted(seconds.items(), key=lambda pair: ORDER.index(pair[0]))
    ]  # fmt: skip
    peak = '' if result['peak'] is None else f'{result["peak"] / GIB:.1f}'
    rows.append(
        (size, mode, 'all', f'{whole:.2f}', '', 'computed' if computed else 'measured', peak)
    )
    for row in rows:
        print(*row, sep='  ', file=sys.stderr, flush=True)
    return rows


ORDER = (
    'preprocessor', 'backbone', 'pyramid', 'RPN', 'box stages', 'NMS', 'mask head',
    'masks into the image', 'heads, backward', 'pyramid, backward', 'backbone, backward', 'update',
    'rest',
)  # fmt: skip


# --------------------------------------------------------------------------- masks after soft-NMS


def soft_nms_ways(cap: int) -> dict[str, dict]:
    """What each way sets.

    ``cap`` boxes go to the mask head, ``chunk`` of them at once, with the maps of all ``classes``
    or of each box's own; masks become RLE, or bool maps first.
    """
    published = dict(cap=-1, chunk=sys.maxsize, classes=True, rle=False)
    ours = dict(cap=-1, chunk=None, classes=False, rle=True)
    return {
        'published: all boxes at once, all classes, bool maps': published,
        'ours: all boxes, RLE': ours,
        f'ours: at most {cap} boxes, RLE': dict(ours, cap=cap),
    }


@contextlib.contextmanager
def _masks_by(head, chunk: int | None, classes: bool) -> Iterator[None]:
    import torch

    from eva_mm.detection import roi_head

    old, forward = roi_head.MASK_CHUNK, head._mask_forward

    def of_all_classes(x, rois, labels):
        chosen = torch.arange(len(labels), device=labels.device), labels
        return forward(x, rois)[chosen][:, None]

    roi_head.MASK_CHUNK = chunk or old
    head._mask_forward = of_all_classes if classes else forward
    try:
        yield
    finally:
        roi_head.MASK_CHUNK, head._mask_forward = old, forward


def roi_head_run(options: dict, clock: Clock) -> Callable[[dict], tuple[int, list]]:
    """The function that runs the RoI head's test on given features one way, parts charged.

    It returns the number of boxes and their masks as RLE.
    """
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import encode_mask_results
    from mmengine.structures import InstanceData

    device, side = options['device'], options['side']
    head = build(model_config('tiny', side, SOFT_NMS_CONFIG).model, device).eval().roi_head
    floor = 1e-6  # below the least score that soft-NMS keeps
    give_scores(head, max(1, options['boxes'] // PROPOSALS), floor, 2e-3)
    give_masks(head)
    clock.wrap(head, 'predict', 'box stages')
    clock_postprocess(clock, head)
    strides = (4, 8, 16, 32, 64)
    features = tuple(torch.randn(1, 256, side // s, side // s, device=device) for s in strides)
    h, w = 3 * side // 4, side
    meta = dict(img_shape=(h, w), ori_shape=(h // 2, w // 2), scale_factor=(2.0, 2.0))
    proposals = make_proposals(make_objects(h), h).to(device)

    def run(way: dict) -> tuple[int, list]:
        head.test_cfg.update(max_per_img=way['cap'], rle_masks=way['rle'])
        given = [InstanceData(bboxes=proposals)], [DetDataSample(metainfo=meta)]
        with torch.no_grad(), _masks_by(head, way['chunk'], way['classes']):
            (results,) = head.predict(features, *given, rescale=True)
        masks = results.masks
        if not way['rle']:
            with clock.part('masks into the image'):
                masks = encode_mask_results(masks.cpu().numpy())
        return len(results), [_counts(rle) for rle in masks]

    return run


def measure_soft_nms(options: dict) -> list[dict]:
    """Measure each way in this process, memory first and time then.

    Returns:
        Per way ``name``, ``boxes``, ``seconds`` of each part and ``peak`` in bytes.

    Raises:
        RuntimeError: the ways differ in the masks that they share.
    """
    clock = Clock(options['device'])
    run, ways = roi_head_run(options, clock), soft_nms_ways(options['cap'])
    found, everything = [], None
    run(dict(cap=1, chunk=None, classes=False, rle=True))  # loads what the first use loads
    for name, way in ways.items():
        memory = Memory(options['device'])
        boxes, masks = run(way)
        found.append(dict(name=name, boxes=boxes, peak=memory.peak()))
        everything = everything or masks
        if masks != everything[: len(masks)]:
            raise RuntimeError(f'{name} and {found[0]["name"]} give different masks')
    set_allocator(USUAL)
    for result, way in zip(found, ways.values()):
        clock.seconds = {}
        run(way)
        result['seconds'] = clock.seconds
    return found


def _counts(rle: dict) -> str:
    counts = rle['counts']
    return counts.decode() if isinstance(counts, bytes) else counts


def soft_nms_table(options: dict) -> Table:
    """The ways beside one another, in a process of their own."""
    found = in_child('detector_step', 'soft_nms', '', json.dumps(options))
    parts = ('NMS', 'mask head', 'masks into the image')
    first = sum(found[0]['seconds'][part] for part in parts[1:])
    rows = []
    for way in found:
        masks = sum(way['seconds'][part] for part in parts[1:])
        rows.append(
            (
                way['name'], way['boxes'],
                *(f'{way["seconds"][part]:.2f}' for part in parts),
                f'{first / masks:.1f}',
                f'{way["peak"] / GIB:.2f}',
                f'{way["peak"] / found[0]["peak"]:.2f}',
            )
        )  # fmt: skip
    header = (
        'way', 'boxes', 'soft-NMS, s', 'mask head, s', 'masks into the image, s',
        'masks, times as fast', 'peak, GiB', 'of it',
    )  # fmt: skip
    side = options['side']
    notes = (
        f'The RoI head of {SOFT_NMS_CONFIG} on features of {side} px, {PROPOSALS} proposals of '
        f'an image of {side // 2} px, fp32; {options["boxes"]} of the scores of 80 classes are '
        'above what soft-NMS keeps. One run each for memory, then one for time.',
        'Masks end as RLE in every way; as far as two ways keep the same boxes, these are equal to '
        "the byte, which is checked. A cap can cost a little AP: COCO's evaluator counts the best "
        '100 of each class.',
    )
    return Table(header, rows, 'Masks after soft-NMS', notes, PACKAGES)


# ------------------------------------------------------------------------------------------- entry


@benchmark(
    'detector_step',
    'where the time of a detector goes: a training step, a test image, masks after soft-NMS',
    sizes=read_sizes,
    side=int,
    masks=int,
    boxes=int,
    cap=int,
    repeats=int,
    config=str,
)
def detector_step(
    sizes: tuple[str, ...] = SIZES,
    side: int = 1280,
    masks: int | None = None,
    boxes: int = 2000,
    cap: int = 300,
    repeats: int | None = None,
    config: str = CONFIG,
) -> list[Table]:
    """Tables of the parts and of masks after soft-NMS, on this machine's GPU or its processor.

    Args:
        side: of the image in pixels.
        masks: most boxes of the test image that get masks; the config's by default.
        boxes: of them soft-NMS keeps about so many.
        cap: most of these in the third way.
        repeats: of each step, after a first one that does not count.
        config: a detector's leaf.
    """
    import torch

    device = the_device()
    repeats = repeats or (10 if device == 'cuda' else 1)
    options = dict(
        device=device, side=side, masks=masks, boxes=boxes, cap=cap, repeats=repeats, config=config
    )
    rows = [row for size in sizes for mode in RUNS for row in rows_of(mode, size, options)]
    header = ('size', 'step', 'part', 'seconds', 'share', 'how', 'peak, GiB')
    notes = [
        f'{config} with each size of backbone, every fourth block global, one image of {side} px, '
        f'{"bf16 autocast in training, fp32 in tests" if device == "cuda" else "fp32"}, '
        f'{torch.get_num_threads()} threads, {repeats} repeats after a first step. Loading images '
        'is not in it. Activation checkpointing, drop path and optimizer are the config\'s.',
        f'Given, because weights are random: {PROPOSALS} proposals, a quarter of them on the '
        f'{OBJECTS} objects, so that the samplers are full; scores and masks in tests. The layers '
        'that would make them run all the same.',
        "Heads, backward: RPN, box stages and mask head together.",
    ]  # fmt: skip
    if any(row[5] == 'computed' for row in rows):
        notes.append(
            'Computed: the backbone from one block with windows, a second one, and a global one; '
            'the rest from the detector with the first alone.'
        )
    parts = Table(header, rows, 'Parts of a step', notes, PACKAGES)
    return [parts, soft_nms_table(options)]


if __name__ == '__main__':
    logging.disable(logging.INFO)  # mmengine tells of each parameter how it was initialised
    given = json.loads(sys.argv[3])
    if sys.argv[1] == 'soft_nms':
        print(json.dumps(measure_soft_nms(given)))
    else:
        print(json.dumps(measure(sys.argv[1], sys.argv[2], given)))
