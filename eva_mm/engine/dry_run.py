"""Tell what a training run would be, and what it lacks, without weights, GPUs or data.

The model is built on the meta device, so parameters, groups and schedule are those of the run at
full length; the data lists are read for real where they are there.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, PARAM_SCHEDULERS, init_default_scope
from torch import nn

from eva_mm.engine.batch_scaling import as_list
from eva_mm.engine.checkpoint import safe_load
from eva_mm.engine.memory import activation_bytes, nbytes, optimizer_state_bytes
from eva_mm.engine.sharding import is_sharded_run, whole_bytes
from eva_mm.engine.strict_loading import load_state_dict
from eva_mm.errors import InputError
from eva_mm.zoo.download import cached_file
from eva_mm.zoo.table import SCHEME

_GIB = 2**30
# What host packages call the size of the image that enters the network.
_SIZE_KEYS = ('pad_size', 'img_size', 'image_size', 'input_size', 'crop_size', 'size')
_RESIZE_KEYS = (*_SIZE_KEYS, 'scale', 'scales')
_SAMPLED_IMAGES = 200
_WARM_UPS = ('ConstantLR', 'LinearLR')
_AUTOCAST_DTYPES = {
    'AmpOptimWrapper': 'float16',
    'BF16OptimWrapper': 'bfloat16',
}


class SchedulePoint(NamedTuple):
    """A moment of the schedule: its 0-based step, the rates there, and why it matters."""

    step: int
    lowest_lr: float
    highest_lr: float
    what: str


class Report:
    """Prints sections as they come and keeps what is missing for the end."""

    def __init__(self) -> None:
        self.missing: list[str] = []

    def title(self, text: str) -> None:
        """Start a section."""
        print(f'\n== {text}', flush=True)

    def line(self, text: str) -> None:
        """Print one line of a section."""
        print(f'  {text}')

    def table(self, rows: Sequence[Sequence[Any]]) -> None:
        """Print rows with columns aligned: the first to the left, the others to the right."""
        cells = [[str(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells)]
        for first, *others in cells:
            rest = (cell.rjust(width) for cell, width in zip(others, widths[1:]))
            self.line('  '.join([first.ljust(widths[0]), *rest]))

    def lack(self, what: str) -> None:
        """Note something without which the run cannot start."""
        if what not in self.missing:
            self.missing.append(what)


def dry_run(cfg: Config, gpus: int = 1) -> int:
    """Print what training with a config would be.

    Args:
        cfg (Config): Of any task, by iterations or by epochs; left unchanged.
        gpus (int): Processes to reckon with.

    Returns:
        int: 0 if the run could start, 1 if something is missing.

    Raises:
        Exception: What the model, optimizer or schedulers raise when they cannot be built.
    """
    cfg = copy.deepcopy(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    report = Report()
    print(f'Dry run of {cfg.filename}')
    model = build_meta_model(cfg)
    describe_parameters(report, model)
    num_images = describe_data(report, cfg)
    wrapper = build_meta_optim_wrapper(cfg, model)
    describe_batch(report, cfg, gpus, wrapper)
    describe_groups(report, wrapper, model)
    describe_schedule(report, cfg, wrapper, epoch_length(cfg, num_images, gpus))
    describe_memory(report, cfg, model, wrapper, gpus)
    describe_weights(report, cfg, model)
    report.title('Missing')
    for what in report.missing:
        report.line(what)
    if report.missing:
        print(f'\ncannot start: {len(report.missing)} things missing')
        return 1
    report.line('nothing')
    print('\nready: this run can start')
    return 0


# ------------------------------------------------------------------------------ model and optimizer


def model_config(cfg: Config) -> dict:
    """Return a copy of the model's config, with the top-level data preprocessor merged in."""
    model_cfg = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model_cfg.setdefault('data_preprocessor', copy.deepcopy(cfg.data_preprocessor))
    return model_cfg


def build_meta_model(cfg: Config) -> nn.Module:
    """Build the model on the meta device: names and shapes, but no storage and no weights."""
    with torch.device('meta'):
        return MODELS.build(model_config(cfg))


def build_meta_optim_wrapper(cfg: Config, model: nn.Module) -> OptimWrapper:
    """Build the optimizer wrapper at the rates of the config, without mixed precision.

    mmengine refuses to build mixed precision without a GPU; groups and rates don't depend on it.
    """
    wrapper_cfg = copy.deepcopy(cfg.optim_wrapper)
    wrapper_cfg['type'] = 'OptimWrapper'
    for key in ('dtype', 'loss_scale', 'use_fsdp'):
        wrapper_cfg.pop(key, None)
    # Refused on the meta device.
    wrapper_cfg.get('optimizer', {}).pop('fused', None)
    return build_optim_wrapper(model, wrapper_cfg)


def precision(cfg: Config) -> torch.dtype:
    """Return the dtype of the forward pass that the config asks for."""
    wrapper = cfg.optim_wrapper
    default = _AUTOCAST_DTYPES.get(wrapper.get('type'))
    dtype = wrapper.get('dtype') or default if default else 'float32'
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def describe_parameters(report: Report, model: nn.Module) -> None:
    """Print how many parameters the model and each of its parts have, and which are frozen."""
    report.title('Parameters')
    rows = [('part', 'all', 'trainable')]
    for name, part in [(type(model).__name__, model), *model.named_children()]:
        params = list(part.parameters())
        if params:
            trainable = sum(p.numel() for p in params if p.requires_grad)
            label = name if part is model else f'  {name}'
            rows.append((label, f'{sum(p.numel() for p in params):,}', f'{trainable:,}'))
    report.table(rows)
    frozen = sorted(
        {n.rpartition('.')[0] or n for n, p in model.named_parameters() if not p.requires_grad}
    )
    if frozen:
        shown = ', '.join(frozen[:6]) + (f' and {len(frozen) - 6} more' if len(frozen) > 6 else '')
        report.line(f'frozen: {shown}')


def describe_groups(report: Report, wrapper: OptimWrapper, model: nn.Module) -> None:
    """Print each parameter group; groups of equal rate and decay without a name share a line."""
    report.title(f'Parameter groups ({type(wrapper.optimizer).__name__})')
    numel = {id(p): p.numel() for p in model.parameters()}
    lines: dict[tuple, list[int]] = {}
    for group in wrapper.optimizer.param_groups:
        key = (group.get('name', '-'), group['lr'], group.get('weight_decay', 0.0))
        line = lines.setdefault(key, [0, 0])
        line[0] += len(group['params'])
        line[1] += sum(numel[id(p)] for p in group['params'])
    rows = [('group', 'lr', 'weight decay', 'tensors', 'parameters')]
    rows += [
        (name, f'{lr:.6g}', f'{decay:g}', tensors, f'{count:,}')
        for (name, lr, decay), (tensors, count) in lines.items()
    ]
    report.table(rows)
    if wrapper.clip_grad_kwargs:
        report.line(f'gradients clipped: {dict(wrapper.clip_grad_kwargs)}')


# -------------------------------------------------------------------------------------- data, batch


def describe_data(report: Report, cfg: Config) -> int | None:
    """Read the data lists that are there, note what is not.

    Returns:
        int | None: Number of training images; None where the list cannot be read.
    """
    report.title('Data')
    lengths = {}
    for part in ('train', 'val', 'test'):
        loader = cfg.get(f'{part}_dataloader')
        if not loader:
            continue
        missing = list(missing_data_files(loader['dataset']))
        for what in missing:
            report.lack(what)
        if part == 'test' and loader['dataset'] == cfg.get('val_dataloader', {}).get('dataset'):
            continue
        if any(what.startswith('annotation') for what in missing):
            report.line(f'{part}: annotations are missing')
        else:
            lengths[part] = _read_dataset(report, part, loader['dataset'], _outputs(cfg))
    for part in ('val', 'test'):
        for what in missing_data_files(cfg.get(f'{part}_evaluator') or {}):
            report.lack(what)
    if cfg.get('train_dataloader'):
        report.line('train transforms:')
        for transform in _pipeline(cfg.train_dataloader.dataset):
            report.line(f'  {_call_text(transform)}')
    if cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor'):
        report.line(f'preprocessor: {_call_text(model_config(cfg)["data_preprocessor"])}')
    return lengths.get('train')


def _outputs(cfg: Config) -> int | None:
    """Outputs of a classifier of images, videos or pixels; None for any other model."""
    head = cfg.model.get('cls_head') or cfg.model.get('decode_head') or {}
    if isinstance(head, (list, tuple)):  # a cascade, of which the last predicts
        head = head[-1]
    return cfg.model.get('num_classes') or head.get('num_classes')


def _read_dataset(
    report: Report, part: str, dataset_cfg: Mapping, outputs: int | None = None
) -> int | None:
    """Build a data set, print its size, and look for a sample of its images or videos."""
    try:
        dataset = DATASETS.build(copy.deepcopy(dataset_cfg))
        size = len(dataset)
        picked = range(0, size, max(1, size // _SAMPLED_IMAGES))
        infos = [dataset.get_data_info(i) for i in picked]
        paths = [info.get('img_path') or info.get('filename') for info in infos]
    except Exception as error:  # any host's data set may raise anything on a broken list
        report.lack(f'{part} data that can be read ({type(error).__name__}: {error})')
        return None
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    told = f', {len(classes)} classes' if classes else ''
    report.line(f'{part}: {size:,} samples{told}')
    labels = max(len(classes), getattr(dataset, 'label_limit', 0))
    if outputs and (labels > outputs or (classes and labels != outputs)):
        report.lack(f'model for the {labels} classes of the {part} data: it has {outputs} outputs')
    absent = [path for path in paths if isinstance(path, str) and not _exists(path)]
    if absent:
        what = 'videos' if 'filename' in infos[0] else 'images'
        report.lack(f'{what}: {len(absent)} of {len(paths)} sampled, such as {absent[0]} ({part})')
    return size


def missing_data_files(cfg: Any) -> Iterator[str]:
    """Yield the annotation files and folders named anywhere in a data set's or metric's config."""
    if isinstance(cfg, Mapping):
        root = cfg.get('data_root')
        root = root if isinstance(root, str) else ''  # several folders have several lists
        ann_file = cfg.get('ann_file')
        if isinstance(ann_file, str) and ann_file and not _exists(os.path.join(root, ann_file)):
            yield f'annotation file: {os.path.join(root, ann_file)}'
        prefix = cfg.get('data_prefix')
        for folder in prefix.values() if isinstance(prefix, Mapping) else [prefix]:
            if isinstance(folder, str) and not _exists(os.path.join(root, folder) or '.'):
                yield f'folder: {os.path.join(root, folder)}'
        cfg = cfg.values()
    elif not isinstance(cfg, (list, tuple)):
        return
    for value in cfg:
        yield from missing_data_files(value)


def _exists(path: str) -> bool:
    """Whether a file or folder is there; what lies on another storage (`s3://`) is taken as so."""
    return '://' in path or os.path.exists(path)


def _pipeline(dataset: Mapping) -> list[Mapping]:
    """Transforms of a data set, those of its wrappers after its own."""
    inner = dataset.get('dataset')
    own = list(dataset.get('pipeline') or ())
    if isinstance(inner, Mapping):
        return _pipeline(inner) + own
    parts = dataset.get('datasets')
    return own or (_pipeline(parts[0]) if parts else [])


def _call_text(cfg: Mapping) -> str:
    """`dict(type='Resize', scale=3)` -> `Resize(scale=3)`, at most 110 characters."""
    args = ', '.join(f'{k}={v}' for k, v in cfg.items() if k not in ('type', '_scope_'))
    kind = cfg['type'] if isinstance(cfg['type'], str) else cfg['type'].__name__
    text = f'{kind}({args})'
    return text if len(text) <= 110 else text[:107] + '...'


def describe_batch(report: Report, cfg: Config, gpus: int, wrapper: OptimWrapper) -> None:
    """Print the total batch beside the one that the rate of the config is meant for."""
    report.title('Batch')
    accumulation = wrapper._accumulative_counts
    per_gpu = cfg.train_dataloader.batch_size
    total = per_gpu * gpus * accumulation
    report.line(
        f'{per_gpu} per GPU x {gpus} GPUs x {accumulation} accumulated = {total} images per update'
    )
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if base is None:
        report.line('base batch: not stated (auto_scale_lr.base_batch_size)')
        return
    published = base * cfg.get('accumulate', 1)
    report.line(
        f'base batch: {published:g}'
        + ('' if published == total else f', {published / total:g} times as many')
    )
    if cfg.auto_scale_lr.get('enable'):
        # mmengine leaves accumulation out of the batch; --accumulate put it into the base.
        factor = per_gpu * gpus / base
        report.line(f'--auto-scale-lr: every rate below is scaled by {factor:g}')
        for group in wrapper.optimizer.param_groups:
            group['lr'] *= factor


# ----------------------------------------------------------------------------------------- schedule


def epoch_length(cfg: Config, num_images: int | None, gpus: int) -> int | None:
    """Iterations per epoch as mmengine counts them; None when the number of images is unknown."""
    if num_images is None:
        return None
    per_gpu = math.ceil(num_images / gpus)
    batches = per_gpu / cfg.train_dataloader.batch_size
    return math.floor(batches) if cfg.train_dataloader.get('drop_last') else math.ceil(batches)


def describe_schedule(
    report: Report, cfg: Config, wrapper: OptimWrapper, length: int | None
) -> None:
    """Print the rates at the key points of the run, found by stepping the real schedulers."""
    by_epoch = 'max_epochs' in cfg.train_cfg
    total = cfg.train_cfg.max_epochs if by_epoch else cfg.train_cfg.max_iters
    unit = 'epochs' if by_epoch else 'iterations'
    report.title(f'Schedule: {total:,} {unit}')
    if length:
        note = f'{total * length:,} iterations' if by_epoch else f'{total / length:.4g} epochs'
        report.line(f'{note} of {length:,} iterations on these data')
    passes = cfg.get('accumulate', 1)
    if wrapper._accumulative_counts > 1:
        report.line(f'one update every {wrapper._accumulative_counts} iterations')
    if passes > 1:
        total //= passes
        report.line(f'--accumulate: {total:,} updates; rates below change with updates alone')
    describe_intervals(report, cfg)
    schedulers = as_list(cfg.get('param_scheduler'))
    if by_epoch and length is None and any(_by_iteration(s) for s in schedulers):
        report.line('rates not simulated: their steps depend on the number of training images')
        return
    counted, points = schedule_points(schedulers, wrapper, total, by_epoch, length)
    if passes > 1:
        counted = 'update'
    rows = [('', counted, 'lr, lowest group', 'lr, highest group')]
    rows += [(p.what, f'{p.step:,}', f'{p.lowest_lr:.6g}', f'{p.highest_lr:.6g}') for p in points]
    report.table(rows)


def describe_intervals(report: Report, cfg: Config) -> None:
    """Print how often an iteration-based run validates and saves."""
    saving = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    intervals = {
        'validation': cfg.train_cfg.get('val_interval') if cfg.get('val_dataloader') else None,
        'checkpoint': None if saving.get('by_epoch', True) else saving.get('interval'),
    }
    told = [f'{what} every {number:,}' for what, number in intervals.items() if number]
    if told and 'max_iters' in cfg.train_cfg:
        report.line(f'{", ".join(told)} iterations')


def _by_iteration(scheduler: Mapping) -> bool:
    return not scheduler.get('by_epoch', True) or scheduler.get('convert_to_iter_based', False)


def schedule_points(
    schedulers: Sequence[Mapping],
    wrapper: OptimWrapper,
    total: int,
    by_epoch: bool,
    length: int | None,
) -> tuple[str, list[SchedulePoint]]:
    """Step the schedulers through a whole run on the lowest and the highest group.

    Args:
        schedulers (Sequence[Mapping]): Configs as in `param_scheduler`.
        wrapper (OptimWrapper): Holds the groups at their base rates.
        total (int): Length of the run in epochs or iterations.
        by_epoch (bool): Whether `total` counts epochs.
        length (int, optional): Iterations per epoch.

    Returns:
        tuple[str, list[SchedulePoint]]: What steps count ('epoch' or 'iteration'), and the points.
    """
    fine = not by_epoch or any(_by_iteration(s) for s in schedulers)
    per_epoch = (length or 0) if fine else 1
    steps = total * per_epoch if by_epoch else total
    optimizer = _two_group_optimizer(wrapper)
    built = [_build_scheduler(s, optimizer, total, by_epoch, length) for s in schedulers]
    optimizer.step()  # schedulers warn when they are stepped before it
    rates = []
    for step in range(steps):
        rates.append([group['lr'] for group in optimizer.param_groups])
        # mmengine ends an epoch in loops by epoch only.
        epoch_ends = by_epoch and (step + 1) % per_epoch == 0
        for scheduler in built:
            if epoch_ends if scheduler.by_epoch else fine:
                scheduler.step()
    labels: dict[int, list[str]] = {0: ['first'], steps - 1: ['last']}
    for scheduler in built:
        for moment, what in _moments(scheduler, per_epoch if scheduler.by_epoch else 1):
            if moment < steps:
                labels.setdefault(moment, []).append(what)
    points = [SchedulePoint(s, *map(float, rates[s]), ', '.join(labels[s])) for s in sorted(labels)]
    return 'iteration' if fine else 'epoch', points


def _two_group_optimizer(wrapper: OptimWrapper) -> torch.optim.Optimizer:
    """An optimizer of the same kind with the lowest and the highest group, one number in each."""
    groups = wrapper.optimizer.param_groups
    chosen = [min(groups, key=lambda g: g['lr']), max(groups, key=lambda g: g['lr'])]
    own = ('params', 'param_names', 'name', 'lr_scale')
    return type(wrapper.optimizer)(
        [
            {
                **{k: v for k, v in g.items() if k not in own},
                'params': [nn.Parameter(torch.zeros(()))],
            }
            for g in chosen
        ]
    )


def _build_scheduler(
    cfg: Mapping, optimizer: torch.optim.Optimizer, total: int, by_epoch: bool, length: int | None
):
    """Build a scheduler as the Runner does: one without an end acts until the end of the run."""
    cfg = copy.deepcopy(dict(cfg))
    if cfg.get('by_epoch', True) == by_epoch:
        cfg.setdefault('end', total)
    elif by_epoch:
        cfg.setdefault('end', total * length)
    defaults = dict(optimizer=optimizer, epoch_length=length)
    return PARAM_SCHEDULERS.build(cfg, default_args=defaults)


def _moments(scheduler: Any, scale: int) -> Iterator[tuple[int, str]]:
    """Yield the steps at which a scheduler starts, jumps, and has reached its last value."""
    kind = type(scheduler).__name__
    if scheduler.begin:
        yield scheduler.begin * scale, f'{kind} begins'
    for milestone in getattr(scheduler, 'milestones', ()):
        yield (scheduler.begin + milestone) * scale, f'{kind} milestone'
    if not hasattr(scheduler, 'milestones'):
        name = f'warm-up ({kind})' if kind in _WARM_UPS else kind
        yield (scheduler.end - 1) * scale, f'{name} ends'


# ------------------------------------------------------------------------------------------- memory


def describe_memory(
    report: Report, cfg: Config, model: nn.Module, wrapper: OptimWrapper, gpus: int
) -> None:
    """Print the memory that training takes on each GPU."""
    report.title('Memory per GPU, estimated')
    trainable = sum(nbytes(p) for p in model.parameters() if p.requires_grad)
    parts = {
        'weights and buffers': sum(map(nbytes, [*model.parameters(), *model.buffers()])),
        'gradients': trainable,
        f'{type(wrapper.optimizer).__name__} state': optimizer_state_bytes(wrapper.optimizer),
    }
    if gpus > 1 and is_sharded_run(cfg):
        parts = {f'{name}, 1 of {gpus} parts': size // gpus for name, size in parts.items()}
        parts['what is whole while it is used'] = whole_bytes(model)
    elif gpus > 1:
        parts['gradient buckets of DistributedDataParallel'] = trainable
    parts.update((what, taken) for what, _, taken in outside_weights(model) if taken)
    size, dtype, frames = training_size(cfg), precision(cfg), clip_frames(cfg)
    batch = cfg.train_dataloader.batch_size
    clip = f'{frames} x ' if frames else ''
    where = (
        f'{clip}{size[0]} x {size[1]} px, batch {batch}, {str(dtype).removeprefix("torch.")}'
        if size
        else ''
    )
    if size is None:
        report.line('activations: not estimated, the config names no image size')
    else:
        try:
            parts[f'activations of backbone and neck ({where})'] = activation_bytes(
                model_config(cfg), batch, size, dtype, frames
            )
        except Exception as error:  # any model's forward may do what fake tensors cannot
            reason = f'{type(error).__name__}: {error}'.splitlines()[0]
            report.line(f'activations ({where}): not estimated, {reason}')
    parts['sum'] = sum(parts.values())
    report.table([(name, f'{value / _GIB:.2f} GiB') for name, value in parts.items()])
    report.line(
        'Not in it: heads and losses, whose shapes depend on the data, and the CUDA context.'
    )


def training_size(cfg: Config) -> tuple[int, int] | None:
    """Height and width in pixels of a training image as the network gets it, largest if it varies.

    The preprocessor is asked first, then the transforms from the last one on, then the backbone.
    """
    model_cfg = model_config(cfg)
    preprocessor = model_cfg.get('data_preprocessor') or {}
    divisor = preprocessor.get('pad_size_divisor') or 1
    pipeline = reversed(_pipeline(cfg.train_dataloader.dataset))
    places = [(preprocessor, _SIZE_KEYS)]
    places += [(transform, _RESIZE_KEYS) for transform in pipeline]
    places += [(model_cfg.get('backbone') or {}, _SIZE_KEYS)]
    for place, keys in places:
        for key in keys:
            side = _as_size(place.get(key))
            if side is not None:
                # mmcv transforms give (width, height), the others (height, width)
                height, width = side[::-1] if place.get('type') and keys is _RESIZE_KEYS else side
                return tuple(math.ceil(s / divisor) * divisor for s in (height, width))
    return None


def clip_frames(cfg: Config) -> int | None:
    """Frames of a training clip as the network gets it; None where it takes images."""
    pipeline = _pipeline(cfg.train_dataloader.dataset)
    if not any(str(transform.get('input_format', '')).endswith('CTHW') for transform in pipeline):
        return None
    counts = (transform.get('num_frames') or transform.get('clip_len') for transform in pipeline)
    return next((count for count in counts if count), None)


def _as_size(value: Any) -> tuple[int, int] | None:
    """3, (3, 4) or [(1, 2), (3, 4)] -> the largest pair; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    if not isinstance(value, (list, tuple)) or not value:
        return None
    if all(isinstance(v, int) for v in value):
        return tuple(value) if len(value) == 2 else None
    sizes = [size for size in map(_as_size, value) if size is not None]
    return max(sizes, key=math.prod, default=None)


# ------------------------------------------------------------------------------------------ weights


def describe_weights(report: Report, cfg: Config, model: nn.Module) -> None:
    """Print the checkpoints that the run starts from, and note those it could not start from.

    The file of ``load_from`` is read, and compared with the model; last, since the model takes it.
    """
    report.title('Weights')
    for source in weight_sources(cfg):
        state = weight_state(source)
        report.line(f'{source}: {state}')
        if state.startswith(('missing', 'unknown')):
            report.lack(f'checkpoint: {source}')
        elif state == 'found' and (problem := _misfit(source, model, source == cfg.load_from)):
            report.lack(f'checkpoint that fits: {problem}')
    outside = list(outside_weights(model))
    for what, state, _ in outside:
        report.line(f'{what}: {state}')
        if state.startswith('missing'):
            report.lack(what)
    if not [*weight_sources(cfg), *outside]:
        report.line('none: every weight starts from its initialisation')


def outside_weights(model: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Weights that a model needs beside its own parameters, such as those of a frozen teacher.

    Models tell them by a method of this name.

    Yields:
        tuple[str, str, int]: What it is; where it is ('missing' if it cannot be had); the bytes
            that it takes on each device.
    """
    if hasattr(model, 'outside_weights'):
        yield from model.outside_weights()


def _misfit(path: str, model: nn.Module, whole: bool) -> str | None:
    """What keeps a local checkpoint from being loaded; its tensors stay on disk."""
    try:
        checkpoint = safe_load(path, map_location='cpu', mmap=True)
        if whole:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # of parameters without memory
                load_state_dict(model, checkpoint.get('state_dict', checkpoint))
    except InputError as error:
        return str(error)
    return None


def weight_sources(cfg: Config) -> Iterator[str]:
    """Yield `load_from` and every checkpoint named inside the model's config."""
    if isinstance(cfg.get('load_from'), str):
        yield cfg.load_from
    yield from _checkpoints(cfg.model)


def _checkpoints(cfg: Any) -> Iterator[str]:
    if isinstance(cfg, Mapping):
        for key, value in cfg.items():
            if key in ('checkpoint', 'pretrained') and isinstance(value, str):
                yield value
            else:
                yield from _checkpoints(value)
    elif isinstance(cfg, (list, tuple)):
        for value in cfg:
            yield from _checkpoints(value)


def weight_state(source: str) -> str:
    """Tell of a checkpoint's path, address or `eva://` name where its weights are."""
    if '://' not in source:
        return 'found' if os.path.exists(source) else 'missing'
    if source.startswith(SCHEME):
        try:
            cached = cached_file(source)
        except ValueError as error:
            return str(error)
        if cached is not None:
            return f'found in the cache, {cached}'
    return 'will be downloaded'
