"""EVA in mmseg: ViT-Adapter backbone, Mask2Former head, the published segmentor, its data."""

from eva_mm import compat

compat.require('mmseg')
compat.require('mmdet')  # Mask2Former's decoders

# mmseg's head builds them by name.
import mmdet.models  # noqa: E402, F401

from eva_mm import engine  # noqa: E402, F401

from .backbone import EVAViTAdapter  # noqa: E402
from .datasets import EVAADE20KDataset, EVACOCOStuffDataset  # noqa: E402
from .head import EVAMask2FormerHead  # noqa: E402
from .segmentor import EVASegmentor  # noqa: E402

__all__ = [
    'EVAADE20KDataset',
    'EVACOCOStuffDataset',
    'EVAMask2FormerHead',
    'EVASegmentor',
    'EVAViTAdapter',
]
