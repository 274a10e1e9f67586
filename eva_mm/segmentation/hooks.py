"""Hook of segmentation: classes that fit the model."""

import itertools
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from eva_mm.errors import InputError


@HOOKS.register_module()
class SegClassesHook(Hook):
    """Stops a run before its first image where model, data and checkpoint do not belong together.

    Compared are the number of classes of the decoder with that of each data set, and their names
    with those that were trained: of the training set, or of the checkpoint that is tested or
    resumed.

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
        self._trained, self._source = _tidy(meta.get('classes')), 'the checkpoint'

    def before_train(self, runner: Runner) -> None:
        """Look at the training set, and at the validation set beside it."""
        if not runner._resume:
            self._trained = ()  # other weights to start from may have other classes
        dataset = runner.train_dataloader.dataset
        self._compare(runner, dataset, 'train')
        self._trained, self._source = _names(dataset), 'train_dataloader.dataset'
        if runner.val_loop is not None:
            self.before_val(runner)

    def before_val(self, runner: Runner) -> None:
        """Look at the validation set."""
        self._compare(runner, runner.val_dataloader.dataset, 'val')

    def before_test(self, runner: Runner) -> None:
        """Look at the test set."""
        self._compare(runner, runner.test_dataloader.dataset, 'test')

    def _compare(self, runner: Runner, dataset: Any, part: str) -> None:
        outputs, names = _outputs(runner.model), _names(dataset)
        where = f'{part}_dataloader.dataset'
        if outputs is not None and names and len(names) != outputs:
            raise InputError(
                f'model.decode_head.num_classes is {outputs}, but {where} has {len(names)} '
                f'classes, from {names[0]!r} to {names[-1]!r}'
            )
        if names and self._trained and names != self._trained:
            pairs = enumerate(itertools.zip_longest(names, self._trained))
            place, (found, expected) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
            raise InputError(
                f'{where} and {self._source} have other classes, or another order: class {place} '
                f'is {found!r} in the former, {expected!r} in the latter ({len(names)} and '
                f'{len(self._trained)} in all)'
            )


def _outputs(model: nn.Module) -> int | None:
    while not hasattr(model, 'decode_head') and hasattr(model, 'module'):  # several views, or DDP
        model = model.module
    return getattr(getattr(model, 'decode_head', None), 'num_classes', None)


def _names(dataset: Any) -> tuple[str, ...]:
    return _tidy((getattr(dataset, 'metainfo', None) or {}).get('classes'))


def _tidy(names: Any) -> tuple[str, ...]:
    """Names without spaces around them, which mmseg's list of ADE20K has."""
    return tuple(str(name).strip() for name in names or ())
