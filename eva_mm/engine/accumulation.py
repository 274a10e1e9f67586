"""Gradient accumulation that leaves a run what it is, update by update."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict

from eva_mm.errors import InputError


def set_accumulation(cfg: Config, count: int) -> None:
    """Let a run take several forward passes per update, in place.

    mmengine counts passes as iterations. So that each update is that of the published run, what
    is counted in iterations is multiplied: the length, and the intervals of validation and of
    checkpoints. Milestones, warm-up and every other schedule stay as written, because schedulers
    are stepped once per update (``PerUpdateSchedulerHook``): the rate cannot move in
    mid-accumulation. ``auto_scale_lr`` takes the accumulated batch. Intervals of logging and of
    other hooks count passes.

    Args:
        cfg: of an iteration-based run; gets the key ``accumulate``.
        count: passes per update.

    Raises:
        InputError: the count is below 1, the config accumulates already, or its loop or schedule
            counts epochs.
    """
    if count == 1:
        return
    _check(cfg, count)
    updates = cfg.train_cfg.max_iters
    cfg.accumulate = cfg.optim_wrapper.accumulative_counts = count
    _scale_loop(cfg.train_cfg, count)
    for scheduler in as_list(cfg.get('param_scheduler')):
        # The Runner would take the number of iterations.
        scheduler.setdefault('end', updates)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.param_scheduler = ConfigDict(type='PerUpdateSchedulerHook', accumulation=count)
    saving = hooks.get('checkpoint') or {}
    if not saving.get('by_epoch', True):
        _multiply(saving, ('interval', 'save_begin'), count)
    if 'base_batch_size' in (cfg.get('auto_scale_lr') or {}):
        # mmengine divides the batch of one pass by it.
        cfg.auto_scale_lr.base_batch_size /= count


def as_list(schedulers: Any) -> list:
    """None, one scheduler's config or several -> a list."""
    if schedulers is None:
        return []
    return list(schedulers) if isinstance(schedulers, (list, tuple)) else [schedulers]


def _check(cfg: Config, count: int) -> None:
    if count < 1:
        raise InputError(
            f'--accumulate takes a number of passes per update, 1 or more, not {count}'
        )
    if 'max_iters' not in cfg.train_cfg:
        raise InputError('--accumulate needs a loop by iterations (train_cfg.max_iters)')
    present = cfg.optim_wrapper.get('accumulative_counts', 1)
    if present != 1:
        raise InputError(
            f'--accumulate {count} on top of optim_wrapper.accumulative_counts={present}: leave '
            f'the latter out, --accumulate sets it'
        )
    if any(s.get('by_epoch', True) for s in as_list(cfg.get('param_scheduler'))):
        raise InputError('--accumulate needs schedulers that count iterations (by_epoch=False)')
    kind = (cfg.get('default_hooks') or {}).get('param_scheduler') or {}
    if kind.get('type', 'ParamSchedulerHook') != 'ParamSchedulerHook':
        raise InputError(f'--accumulate cannot replace default_hooks.param_scheduler {kind.type}')


def _scale_loop(loop: ConfigDict, count: int) -> None:
    loop.setdefault('val_interval', 1000)  # mmengine's own
    _multiply(loop, ('max_iters', 'val_interval', 'val_begin'), count)
    if loop.get('dynamic_intervals'):
        # Looked up at the iteration to come, hence the ones.
        loop.dynamic_intervals = [
            ((start - 1) * count + 1, interval * count)
            for start, interval in loop.dynamic_intervals
        ]


def _multiply(place: ConfigDict, keys: tuple[str, ...], count: int) -> None:
    for key in keys:
        if place.get(key, 0) > 0:
            place[key] *= count
