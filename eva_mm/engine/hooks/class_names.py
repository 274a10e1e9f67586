"""Classes that fit the model: what the hooks of segmentation and of video have in common."""

import itertools
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from eva_mm.errors import InputError


class ClassNamesHook(Hook):
    """Stops a run before its first sample where model, data and checkpoint do not belong together.

    Compared are the number of the head's outputs with that of each data set's classes, and their
    names with those that were trained: of the training set, or of the checkpoint that is tested or
    resumed. Data sets without names are not held to any.

    Attributes:
        outputs_key: what a config calls the number of outputs.

    Raises:
        InputError: they differ.
    """

    priority = 'VERY_HIGH'
    outputs_key = ''

    def __init__(self) -> None:
        self._trained: tuple[str, ...] = ()
        self._source = ''

    def head_of(self, model: nn.Module) -> nn.Module | None:
        """The part of the bare model that has ``num_classes``, if there is one."""
        raise NotImplementedError

    def name_of(self, dataset: Any, part: str) -> str:
        """What messages call the data set of a part."""
        return f'{part}_dataloader.dataset'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note what the checkpoint was trained on."""
        meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
        self._trained, self._source = _tidy(meta.get('classes')), 'the checkpoint'

    def before_train(self, runner: Runner) -> None:
        """Look at the training set, and at the validation set beside it."""
        if not runner._resume:
            self._trained = ()  # other weights to start from may have other classes
        dataset = runner.train_dataloader.dataset
        self.compare(runner, dataset, 'train')
        if names := class_names(dataset):
            self._trained, self._source = names, 'train_dataloader.dataset'
        if runner.val_loop is not None:
            self.before_val(runner)

    def before_val(self, runner: Runner) -> None:
        """Look at the validation set."""
        self.compare(runner, runner.val_dataloader.dataset, 'val')

    def before_test(self, runner: Runner) -> None:
        """Look at the test set."""
        self.compare(runner, runner.test_dataloader.dataset, 'test')

    def num_outputs(self, runner: Runner) -> int | None:
        """Outputs of the head; None where the model has no such."""
        model = runner.model
        while self.head_of(model) is None and hasattr(model, 'module'):  # several views, or DDP
            model = model.module
        return getattr(self.head_of(model), 'num_classes', None)

    def compare(self, runner: Runner, dataset: Any, part: str) -> None:
        """Refuse a data set of other classes than the model's, or than those trained."""
        outputs, names, where = (
            self.num_outputs(runner),
            class_names(dataset),
            self.name_of(dataset, part),
        )
        if outputs is not None and names and len(names) != outputs:
            raise InputError(
                f'{self.outputs_key} is {outputs}, but {where} has {len(names)} classes, from '
                f'{names[0]!r} to {names[-1]!r}'
            )
        if names and self._trained and names != self._trained:
            pairs = enumerate(itertools.zip_longest(names, self._trained))
            place, (found, expected) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
            raise InputError(
                f'{where} and {self._source} have other classes, or another order: class {place} '
                f'is {found!r} in the former, {expected!r} in the latter ({len(names)} and '
                f'{len(self._trained)} in all)'
            )


def class_names(dataset: Any) -> tuple[str, ...]:
    """Names of a data set's classes; empty where it has none."""
    return _tidy((getattr(dataset, 'metainfo', None) or {}).get('classes'))


def _tidy(names: Any) -> tuple[str, ...]:
    """Names without spaces around them, which mmseg's list of ADE20K has."""
    return tuple(str(name).strip() for name in names or ())
