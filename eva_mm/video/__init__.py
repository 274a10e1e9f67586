"""EVA in mmaction2: joint space-time backbone, head, recognizer and what their data needs.

Importing this makes mmaction2 importable beside mmcv 2.3 (see :mod:`eva_mm.compat`), so it comes
before any ``mmaction`` import, ``MMAction2Inferencer`` included.
"""

from eva_mm import compat

compat.require('mmaction')
compat.mend_mmaction_file_client()

from eva_mm import engine  # noqa: E402, F401

from . import datasets, hooks, transforms  # noqa: E402, F401
from .backbone import EVAVideoTransformer  # noqa: E402
from .blending import MixupOrCutmix  # noqa: E402
from .head import EVAVideoHead  # noqa: E402
from .recognizer import EVARecognizer  # noqa: E402

__all__ = ['EVARecognizer', 'EVAVideoHead', 'EVAVideoTransformer', 'MixupOrCutmix']
