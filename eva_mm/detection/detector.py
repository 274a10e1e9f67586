"""EVA's detector: loads published checkpoints as they are."""

from mmdet.models import CascadeRCNN
from mmdet.registry import MODELS

from eva_mm.engine.checkpoint import rename_published_keys, require_common_names


@MODELS.register_module()
class EVACascadeRCNN(CascadeRCNN):
    """Cascade (Mask) R-CNN that takes published parameter names as well as its own.

    Renaming happens before every loading of a state dict, so each way in is served: ``load_from``,
    ``tools/test.py``, mmdet's inferencers, ``load_state_dict``.

    Raises:
        ValueError: when a state dict has not one parameter of the model.
    """

    def _load_from_state_dict(self, state_dict, prefix, *args):
        rename_published_keys(state_dict, prefix, 'detector')
        require_common_names(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
