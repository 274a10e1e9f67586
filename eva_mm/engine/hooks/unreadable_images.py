"""Report how many unreadable images a training set replaced."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class UnreadableImagesHook(Hook):
    """Logs the count of a data set with ``skip_unreadable`` as it grows, and the sum at the end.

    Data sets tell it as ``num_replaced``; for any other this hook is silent. Images that come
    up again are counted again.

    Args:
        interval: iterations between two looks.
    """

    priority = 'VERY_LOW'

    def __init__(self, interval: int = 1000) -> None:
        self.interval = interval
        self._told = 0

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
                f'unreadable images replaced by others on this process so far: {count}',
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
        print_log(f'unreadable images replaced by others: {int(total)}', 'current', level)


def _innermost(runner: Runner) -> Any:
    dataset = runner.train_dataloader.dataset
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return dataset


def _count(runner: Runner) -> int:
    return getattr(_innermost(runner), 'num_replaced', 0)
