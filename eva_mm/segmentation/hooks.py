"""Hook of segmentation: classes that fit the model."""

from mmengine.registry import HOOKS
from torch import nn

from eva_mm.engine.hooks.class_names import ClassNamesHook


@HOOKS.register_module()
class SegClassesHook(ClassNamesHook):
    """Holds data sets and checkpoint to the classes of the decoder; see :class:`ClassNamesHook`."""

    outputs_key = 'model.decode_head.num_classes'

    def head_of(self, model: nn.Module) -> nn.Module | None:
        """The decoder; the last of a cascade, which predicts."""
        return last_head(model) if hasattr(model, 'decode_head') else None


def last_head(model: nn.Module) -> nn.Module:
    """The decoder of a segmentor whose maps are its predictions."""
    head = model.decode_head
    return head[-1] if isinstance(head, nn.ModuleList) else head
