"""Hook of video classification: classes that fit the model."""

import itertools
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from eva_mm.errors import InputError


@HOOKS.register_module()
class VideoClassesHook(Hook):
    """Stops a run before its first video where model, lists and checkpoint do not belong together.

    Compared are the number of the head's outputs with the labels of each list and with the number
    of its class names, and the names of each list with those that were trained: of the training
    list, or of the checkpoint that is tested or resumed. Lists without names
    (see ``EVAVideoDataset``) are held to the labels alone.

    Raises:
        InputError: they differ.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._trained: tuple[str, ...] = ()
        self._source = ''

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note what the checkpoint was trained on."""
        meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        self._trained, self._source = tuple(meta.get('classes') or ()), 'the checkpoint'

    def before_train(self, runner: Runner) -> None:
        """Look at the training list, and at the validation list beside it."""
        if not runner._resume:
            self._trained = ()  # other weights to start from may have other classes
        self._compare(runner, runner.train_dataloader.dataset, 'train')
        own = _names(runner.train_dataloader.dataset)
        if own:
            self._trained, self._source = own, 'train_dataloader.dataset'
        if runner.val_loop is not None:
            self.before_val(runner)

    def before_val(self, runner: Runner) -> None:
        """Look at the validation list."""
        self._compare(runner, runner.val_dataloader.dataset, 'val')

    def before_test(self, runner: Runner) -> None:
        """Look at the test list."""
        self._compare(runner, runner.test_dataloader.dataset, 'test')

    def _compare(self, runner: Runner, dataset: Any, part: str) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        outputs = getattr(getattr(model, 'cls_head', None), 'num_classes', None)
        names, limit = _names(dataset), getattr(dataset, 'label_limit', 0)
        where = f'{part}_dataloader.dataset ({getattr(dataset, "ann_file", "")})'
        if outputs is not None and names and len(names) != outputs:
            raise InputError(
                f'model.cls_head.num_classes is {outputs}, but {where} has {len(names)} classes, '
                f'from {names[0]!r} to {names[-1]!r}'
            )
        if outputs is not None and limit > outputs:
            raise InputError(
                f'model.cls_head.num_classes is {outputs}, but {where} has labels up to {limit - 1}'
            )
        if names and self._trained and names != self._trained:
            pairs = enumerate(itertools.zip_longest(names, self._trained))
            place, (found, expected) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
            raise InputError(
                f'{where} and {self._source} have other classes, or another order: class {place} '
                f'is {found!r} in the former, {expected!r} in the latter ({len(names)} and '
                f'{len(self._trained)} in all)'
            )


def _names(dataset: Any) -> tuple[str, ...]:
    return tuple((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())
