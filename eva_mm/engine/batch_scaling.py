"""A run at another total batch: as many images as at the one it is written for.

mmengine's ``auto_scale_lr`` changes the rate alone. Runs that count epochs then still see the same
images; runs that count iterations would see fewer or more, so that their length, schedules and
intervals are scaled too, as detectron2 does (``DefaultTrainer.auto_scale_workers``).
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.optim.scheduler import param_scheduler
from mmengine.registry import PARAM_SCHEDULERS

from eva_mm.errors import InputError

_REACH_BEFORE_END = (
    param_scheduler.LinearParamScheduler,
    param_scheduler.ConstantParamScheduler,
    param_scheduler.PolyParamScheduler,
)
_SCALABLE = (
    *_REACH_BEFORE_END,
    param_scheduler.MultiStepParamScheduler,
    param_scheduler.CosineAnnealingParamScheduler,
    param_scheduler.CosineRestartParamScheduler,
)


def scale_to_images(cfg: Config, factor: float) -> bool:
    """Multiply what a run counts in iterations, in place; one that counts epochs stays as it is.

    Args:
        cfg: of the run.
        factor: images per update that the config is written for, over those of this run.

    Returns:
        Whether anything changed.

    Raises:
        InputError: a scheduler cannot be scaled, or counts epochs in a run by iterations.
    """
    if factor == 1 or 'max_iters' not in cfg.train_cfg:
        return False
    for scheduler in as_list(cfg.get('param_scheduler')):
        _scale_scheduler(scheduler, factor)
    scale_loop_and_saving(cfg, factor)
    return True


def scale_loop_and_saving(cfg: Config, factor: float) -> None:
    """Multiply the length of a run by iterations and the intervals of validation and saving."""
    loop = cfg.train_cfg
    loop.setdefault('val_interval', 1000)  # mmengine's own
    _multiply(loop, ('max_iters', 'val_interval', 'val_begin'), factor)
    if loop.get('dynamic_intervals'):
        # Looked up at the iteration to come, hence the ones.
        loop.dynamic_intervals = [
            (round((start - 1) * factor) + 1, max(1, round(interval * factor)))
            for start, interval in loop.dynamic_intervals
        ]
    saving = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if not saving.get('by_epoch', True):
        _multiply(saving, ('interval', 'save_begin'), factor)


def as_list(schedulers: Any) -> list:
    """None, one scheduler's config or several -> a list."""
    if schedulers is None:
        return []
    return list(schedulers) if isinstance(schedulers, (list, tuple)) else [schedulers]


def _multiply(place: ConfigDict, keys: tuple[str, ...], factor: float) -> None:
    for key in keys:
        if (place.get(key) or 0) > 0:
            place[key] = max(1, round(place[key] * factor))


def _scale_scheduler(scheduler: ConfigDict, factor: float) -> None:
    kind = scheduler.type
    kind = PARAM_SCHEDULERS.get(kind) if isinstance(kind, str) else kind
    if kind is None or not issubclass(kind, _SCALABLE) or scheduler.get('by_epoch', True):
        raise InputError(
            f'--auto-scale-lr cannot scale the schedule {scheduler.type}, expected '
            f'by_epoch=False and a linear, constant, polynomial, multi-step or cosine one; a batch '
            f'that --accumulate brings to the published one needs no scaling'
        )
    begin, end = scheduler.get('begin', 0), scheduler.get('end')
    _multiply(scheduler, ('begin', 'T_max'), factor)
    if 'milestones' in scheduler:
        scheduler.milestones = [round(place * factor) for place in scheduler.milestones]
    if 'periods' in scheduler:
        # Their ends are scaled, so that rounding does not add up.
        ends = [round(end * factor) for end in accumulate(scheduler.periods, initial=0)]
        scheduler.periods = [max(1, b - a) for a, b in pairwise(ends)]
    if end is not None:
        # These reach their last value one step before `end`.
        tail = 1 if issubclass(kind, _REACH_BEFORE_END) else 0
        length = round((end - begin - tail) * factor)
        scheduler.end = scheduler.get('begin', 0) + max(1, length) + tail
