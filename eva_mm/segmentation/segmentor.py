"""EVA's segmentor: loads published checkpoints as they are."""

from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS

from eva_mm.engine.checkpoint import rename_published_keys, require_common_names
from eva_mm.engine.strict_loading import StrictLoading

from .backbone import EVAViTAdapter


@MODELS.register_module()
class EVASegmentor(StrictLoading, EncoderDecoder):
    """Encoder and decoder that take published parameter names as well as their own.

    Renaming happens before every loading of a state dict, so each way in is served: ``load_from``,
    ``tools/test.py``, mmseg's inferencer, ``load_state_dict``. A checkpoint that does not fit is
    refused (see :class:`StrictLoading`); ``allowed_missing`` lets a training run start from
    another segmentor, with new class scores where the classes differ.

    Raises:
        ValueError: when a state dict has not one parameter of the model.
    """

    may_be_unexpected = (
        *(f'backbone.{pattern}' for pattern in EVAViTAdapter.may_be_unexpected),
        'decode_head.conv_seg.*',  # mmseg's own head made it, and Mask2Former never used it
    )

    def has_initial_weights(self) -> bool:
        """Heads are initialised by ``init_weights``, which training calls and testing does not."""
        return self.is_init

    def _load_from_state_dict(self, state_dict, prefix, *args):
        rename_published_keys(state_dict, prefix, 'segmentor')
        require_common_names(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
