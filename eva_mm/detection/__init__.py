"""EVA in mmdet: backbone, pyramid, the published cascade detector, its data and its metrics."""

from eva_mm import compat

compat.require('mmdet')

from eva_mm import engine  # noqa: E402, F401

from . import (  # noqa: E402, F401
    cocofied,
    datasets,
    metrics,
    objects365,
    samplers,
    submission,
    transforms,
    tta,
)
from .backbone import EVAViTDet  # noqa: E402
from .detector import EVACascadeRCNN  # noqa: E402
from .hooks import FederatedClassCountsHook  # noqa: E402
from .losses import FederatedLoss  # noqa: E402
from .mask_head import EVAMaskHead  # noqa: E402
from .neck import SimpleFeaturePyramid  # noqa: E402
from .preprocessor import FixedSizeDetDataPreprocessor  # noqa: E402
from .roi_head import EVACascadeRoIHead  # noqa: E402
from .rpn_head import EVARPNHead  # noqa: E402
from .task_modules import EVADeltaXYWHBBoxCoder, EVAMaxIoUAssigner  # noqa: E402

__all__ = [
    'EVACascadeRCNN',
    'EVACascadeRoIHead',
    'EVADeltaXYWHBBoxCoder',
    'EVAMaskHead',
    'EVAMaxIoUAssigner',
    'EVARPNHead',
    'EVAViTDet',
    'FederatedClassCountsHook',
    'FederatedLoss',
    'FixedSizeDetDataPreprocessor',
    'SimpleFeaturePyramid',
]
