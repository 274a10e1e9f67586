"""EVA's video classifier: loads published checkpoints, of images and of clips, as they are."""

import os
from collections.abc import Iterator

from mmaction.models.recognizers import Recognizer3D
from mmaction.registry import MODELS

from eva_mm.engine.checkpoint import rename_published_keys, require_common_names
from eva_mm.engine.strict_loading import StrictLoading

from .backbone import EVAVideoTransformer


@MODELS.register_module()
class EVARecognizer(StrictLoading, Recognizer3D):
    """mmaction2's recognizer of clips that takes published parameter names as well as its own.

    Renaming happens before every loading of a state dict, so each way in is served: ``load_from``,
    ``tools/test.py``, mmaction2's inferencers, ``load_state_dict``. A checkpoint that does not fit
    is refused (see :class:`StrictLoading`).

    Raises:
        ValueError: when a state dict has not one parameter of the model.
    """

    may_be_unexpected = tuple(f'backbone.{p}' for p in EVAVideoTransformer.may_be_unexpected)

    def has_initial_weights(self) -> bool:
        """What a checkpoint lacks may be trained, but not tested."""
        return self.is_init

    def outside_weights(self) -> Iterator[tuple[str, str, int]]:
        """The file of class rows, for a dry run; see ``eva_mm.engine.dry_run.outside_weights``."""
        rows = getattr(self.cls_head, 'class_rows', None)
        if isinstance(rows, str):
            yield f'class mapping {rows}', 'found' if os.path.isfile(rows) else 'missing', 0

    def _load_from_state_dict(self, state_dict, prefix, *args):
        rename_published_keys(state_dict, prefix, 'video')
        require_common_names(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
