"""EVA's detector: loads published checkpoints as they are."""

from mmdet.models import CascadeRCNN
from mmdet.registry import MODELS

from eva_mm.zoo.keys import DETECTOR_KEYS


@MODELS.register_module()
class EVACascadeRCNN(CascadeRCNN):
    """Cascade (Mask) R-CNN that takes published parameter names as well as its own.

    Renaming happens before every loading of a state dict, so each way in is served: ``load_from``,
    ``tools/test.py``, mmdet's inferencers, ``load_state_dict``.
    """

    def _load_from_state_dict(self, state_dict, prefix, *args):
        renamed = DETECTOR_KEYS.to_mm(
            {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
        )
        for key in [k for k in state_dict if k.startswith(prefix)]:
            del state_dict[key]
        state_dict.update({prefix + key: value for key, value in renamed.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)
