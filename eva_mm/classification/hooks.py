"""Hooks of classification: classes that fit the model, statistics alike on all processes."""

from typing import Any

from mmengine.dist import broadcast, is_distributed
from mmengine.hooks import Hook
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
    """Stops a run whose model has another number of outputs than its data set has classes."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Look at the training set."""
        _compare_classes(runner, runner.train_dataloader.dataset, 'train')

    def before_val(self, runner: Runner) -> None:
        """Look at the validation set."""
        _compare_classes(runner, runner.val_dataloader.dataset, 'val')

    def before_test(self, runner: Runner) -> None:
        """Look at the test set."""
        _compare_classes(runner, runner.test_dataloader.dataset, 'test')


def _compare_classes(runner: Runner, dataset: Any, part: str) -> None:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    outputs = getattr(model, 'num_classes', None)
    if classes is not None and outputs is not None and len(classes) != outputs:
        raise InputError(
            f'model.num_classes is {outputs}, but {part}_dataloader.dataset has {len(classes)} '
            f'classes, from {classes[0]} to {classes[-1]}'
        )
