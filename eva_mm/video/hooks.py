"""Hook of video classification: classes that fit the model."""

from typing import Any

from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from eva_mm.engine.hooks.class_names import ClassNamesHook
from eva_mm.errors import InputError


@HOOKS.register_module()
class VideoClassesHook(ClassNamesHook):
    """Holds lists and checkpoint to the classes of the head; see :class:`ClassNamesHook`.

    Lists without names (see ``EVAVideoDataset``) are held to the labels alone.

    Raises:
        InputError: they differ, or a list has labels that the head has no output for.
    """

    outputs_key = 'model.cls_head.num_classes'

    def head_of(self, model: nn.Module) -> nn.Module | None:
        """The classifier."""
        return getattr(model, 'cls_head', None)

    def name_of(self, dataset: Any, part: str) -> str:
        """With the list's file."""
        return f'{part}_dataloader.dataset ({getattr(dataset, "ann_file", "")})'

    def compare(self, runner: Runner, dataset: Any, part: str) -> None:
        """Refuse other classes, or labels beyond them."""
        super().compare(runner, dataset, part)
        outputs, limit = self.num_outputs(runner), getattr(dataset, 'label_limit', 0)
        if outputs is not None and limit > outputs:
            raise InputError(
                f'{self.outputs_key} is {outputs}, but {self.name_of(dataset, part)} has labels up '
                f'to {limit - 1}'
            )
