"""EVA's detector: loads published checkpoints as they are."""

from mmdet.models import CascadeRCNN
from mmdet.registry import MODELS

from eva_mm.engine.checkpoint import rename_published_keys, require_common_names
from eva_mm.engine.strict_loading import StrictLoading

from .backbone import EVAViTDet


@MODELS.register_module()
class EVACascadeRCNN(StrictLoading, CascadeRCNN):
    """Cascade (Mask) R-CNN that takes published parameter names as well as its own.

    Renaming happens before every loading of a state dict, so each way in is served: ``load_from``,
    ``tools/test.py``, mmdet's inferencers, ``load_state_dict``. A checkpoint that does not fit is
    refused (see :class:`StrictLoading`); ``allowed_missing`` lets a training run start from
    another detector, with new layers where the classes differ.

    Raises:
        ValueError: when a state dict has not one parameter of the model.
    """

    # Image counts of the training set: the data set brings them, COCO's detectors have none.
    may_be_missing = ('roi_head.bbox_head.*.loss_cls.fed_loss_cls_weights',)
    may_be_unexpected = (
        *may_be_missing,
        *(f'backbone.{pattern}' for pattern in EVAViTDet.may_be_unexpected),
    )

    def has_initial_weights(self) -> bool:
        """Heads are initialised by ``init_weights``, which training calls and testing does not."""
        return self.is_init

    def _load_from_state_dict(self, state_dict, prefix, *args):
        rename_published_keys(state_dict, prefix, 'detector')
        require_common_names(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
