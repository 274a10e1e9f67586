"""Hooks of classification: classes that fit the model, statistics alike on all processes."""

import itertools
from collections.abc import Sequence
from typing import Any

from mmengine.dist import broadcast, is_distributed
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from eva_mm.errors import InputError


@HOOKS.register_module()
class BroadcastBuffersHook(Hook):
    """Gives every process the running statistics of the first before they are evaluated.

    Each process keeps the statistics of its own batches. Those of the first are the ones that
    checkpoints hold; with their mean, as mmengine's ``SyncBuffersHook`` takes it, the accuracy in
    the log would be that of other weights than those saved.
    """

    priority = 'NORMAL'

    def before_val(self, runner: Runner, *_: Any) -> None:
        """Send them."""
        if is_distributed():
            for buffer in runner.model.buffers():
                broadcast(buffer)


@HOOKS.register_module()
class ClassCountHook(Hook):
    """Stops a run whose model, data sets and checkpoint do not belong together.

    Compared are the number of a model's outputs with that of a data set's classes, and names and
    order of the classes that are evaluated with those that were trained: of the training set in a
    training, of the checkpoint's ``dataset_meta`` in a test or where a run is resumed. Names that
    are mere numbers, as of a file list with labels, tell nothing but how many there are.

    Raises:
        InputError: they differ; or a checkpoint with a moving average is resumed without one.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._trained: tuple[str, ...] = ()
        self._source = ''

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note what the checkpoint was trained on."""
        meta = checkpoint.get('meta') or {}
        self._trained = tuple((meta.get('dataset_meta') or {}).get('classes') or ())
        self._source = 'the checkpoint'
        averages = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        if runner._resume and 'ema_state_dict' in checkpoint and not averages:
            raise InputError(
                'the checkpoint to be resumed holds a moving average and the weights it was taken '
                'of, but the config has no EVAEMAHook in custom_hooks: training would go on from '
                'the average; add the hook, or start from the average by load_from'
            )

    def before_train(self, runner: Runner) -> None:
        """Look at the training set, and at the validation set beside it."""
        dataset = runner.train_dataloader.dataset
        _compare_number(runner, dataset, 'train')
        if runner._resume:
            self._compare_names(dataset, 'train')
        self._trained, self._source = _classes(dataset), 'train_dataloader.dataset'
        if runner.val_loop is not None:
            self.before_val(runner)

    def before_val(self, runner: Runner) -> None:
        """Look at the validation set."""
        self._compare(runner, runner.val_dataloader.dataset, 'val')

    def before_test(self, runner: Runner) -> None:
        """Look at the test set."""
        self._compare(runner, runner.test_dataloader.dataset, 'test')

    def _compare(self, runner: Runner, dataset: Any, part: str) -> None:
        _compare_number(runner, dataset, part)
        self._compare_names(dataset, part)

    def _compare_names(self, dataset: Any, part: str) -> None:
        here, trained = _classes(dataset), self._trained
        if not here or not trained or here == trained or _numbers(here) or _numbers(trained):
            return
        pairs = enumerate(itertools.zip_longest(here, trained))
        place, (found, expected) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise InputError(
            f'{part}_dataloader.dataset and {self._source} have other classes, or another order: '
            f'class {place} is {found!r} in the former, {expected!r} in the latter '
            f'({len(here)} and {len(trained)} in all). Its key classes gives names and order'
        )


def _classes(dataset: Any) -> tuple[str, ...]:
    return tuple((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())


def _numbers(classes: Sequence[str]) -> bool:
    return all(name == str(index) for index, name in enumerate(classes))


def _compare_number(runner: Runner, dataset: Any, part: str) -> None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    classes, outputs = _classes(dataset), getattr(model, 'num_classes', None)
    if classes and outputs is not None and len(classes) != outputs:
        raise InputError(
            f'model.num_classes is {outputs}, but {part}_dataloader.dataset has {len(classes)} '
            f'classes, from {classes[0]} to {classes[-1]}'
        )
