"""EVA in mmseg: ViT-Adapter backbone, Mask2Former head, the published segmentor, its data."""

import io
from contextlib import redirect_stdout

from eva_mm import compat

compat.require('mmseg')
compat.require('mmdet')  # Mask2Former's decoders

# It prints, on the standard output, which optional package it does without.
with redirect_stdout(io.StringIO()):
    import mmseg.datasets  # noqa: E402, F401

# mmseg's head builds them by name.
import mmdet.models  # noqa: E402, F401

from eva_mm import engine  # noqa: E402, F401

compat.mend_mmseg_output_dir()

from .backbone import EVAViTAdapter  # noqa: E402
from .datasets import (  # noqa: E402
    EVAADE20KDataset,
    EVACOCOStuffDataset,
    EVASegmentationFolder,
)
from .head import EVAMask2FormerHead  # noqa: E402
from .hooks import SegClassesHook  # noqa: E402
from .segmentor import EVASegmentor  # noqa: E402
from .transforms import PadAtLeast  # noqa: E402
from .tta import EVASegTTAModel  # noqa: E402

__all__ = [
    'EVAADE20KDataset',
    'EVACOCOStuffDataset',
    'EVAMask2FormerHead',
    'EVASegTTAModel',
    'EVASegmentationFolder',
    'EVASegmentor',
    'EVAViTAdapter',
    'PadAtLeast',
    'SegClassesHook',
]
