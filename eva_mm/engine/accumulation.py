"""Gradient accumulation that leaves a run what it is, update by update."""

from __future__ import annotations

from mmengine.config import Config, ConfigDict

from eva_mm.errors import InputError

from .batch_scaling import as_list, scale_loop_and_saving


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
    scale_loop_and_saving(cfg, count)
    for scheduler in as_list(cfg.get('param_scheduler')):
        # The Runner would take the number of iterations.
        scheduler.setdefault('end', updates)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.param_scheduler = ConfigDict(type='PerUpdateSchedulerHook', accumulation=count)
    if 'base_batch_size' in (cfg.get('auto_scale_lr') or {}):
        # mmengine divides the batch of one pass by it.
        cfg.auto_scale_lr.base_batch_size /= count


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
