"""ImageNet classification on mmengine and timm: importing this registers all of it."""

from eva_mm import engine

from .classifier import EVAClassifier
from .datasets import ClassificationImages, TarImages
from .ema import EVAEMAHook, RawAndAveragedValLoop
from .hooks import BroadcastBuffersHook, ClassCountHook
from .lars import EVALARS
from .metrics import ClassificationMetric
from .preprocessor import ClassificationDataPreprocessor
from .transforms import CropWithoutRetry, FlipToTensor, TimmTransform
from .variants import (
    NumberedImages,
    ObjectNetImages,
    RealImages,
    RealLabelsMetric,
    SubsetImages,
    SubsetMetric,
)

__all__ = [
    'EVALARS',
    'BroadcastBuffersHook',
    'ClassCountHook',
    'ClassificationDataPreprocessor',
    'ClassificationImages',
    'ClassificationMetric',
    'CropWithoutRetry',
    'EVAClassifier',
    'EVAEMAHook',
    'FlipToTensor',
    'NumberedImages',
    'ObjectNetImages',
    'RawAndAveragedValLoop',
    'RealImages',
    'RealLabelsMetric',
    'SubsetImages',
    'SubsetMetric',
    'TarImages',
    'TimmTransform',
    'engine',
]
