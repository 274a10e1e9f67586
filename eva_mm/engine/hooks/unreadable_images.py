"""Report how many unreadable images a training set replaced."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class UnreadableImagesHook(Hook):
    """Logs the count of a data set with ``skip_unreadable`` as it grows, and the sum at the end.

    Beside it stands its share of the samples trained with, about: workers load some in advance.
    Data sets tell it as ``num_replaced``; for any other this hook is silent. Images that come
    up again are counted again.

    Args:
        interval: iterations between two looks.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval: int = 1000) -> None:
        self.interval = interval
        self._told = 0
        self._first = 0  # iteration that this process started at; nothing was counted before

    def before_train(self, runner: Runner) -> None:
        """Note where the run starts."""
        self._first = runner.iter

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | Sequence | None = None,
    ) -> None:
        """Tell of new ones on this process."""
        count = _count(runner)
        if self.every_n_train_iters(runner, self.interval) and count > self._told:
            self._told = count
            print_log(
                f'unreadable images replaced by others on this process so far: '
                f'{count}{self._share(runner, count, runner.iter + 1)}',
                'current',
                logging.WARNING,
            )

    def after_train(self, runner: Runner) -> None:
        """Tell the sum over all processes."""
        if not getattr(_innermost(runner), 'skip_unreadable', False):
            return
        total = torch.tensor(_count(runner))
        all_reduce(total)
        level = logging.WARNING if total else logging.INFO
        share = self._share(runner, int(total), runner.iter, get_world_size())
        print_log(f'unreadable images replaced by others: {int(total)}{share}', 'current', level)

    def _share(self, runner: Runner, count: int, iterations: int, processes: int = 1) -> str:
        """Part of the samples, as text; empty where the loader does not tell how many there are."""
        loader = runner.train_dataloader
        batch = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', None)
        samples = (iterations - self._first) * (batch or 0) * processes
        return f' ({count / samples:.2%} of {samples} samples)' if samples else ''


def _innermost(runner: Runner) -> Any:
    dataset = runner.train_dataloader.dataset
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset


def _count(runner: Runner) -> int:
    return getattr(_innermost(runner), 'num_replaced', 0)
