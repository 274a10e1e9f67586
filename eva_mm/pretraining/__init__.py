"""Masked image modelling with CLIP features as targets, on mmengine's Runner.

``custom_imports = dict(imports=['eva_mm.pretraining'])`` in a config brings everything.
"""

from eva_mm import engine  # noqa: F401  (safe checkpoints, exact data, layer decay)

from .contrastive import CaptionedImages, ContrastiveCLIP, RetrievalMetric, TokenizeCaption
from .datasets import PretrainingImages
from .feature_cache import FeatureCacheHook
from .mae import EVAMAE
from .masking import AlternatingMask, BlockMask, MaskNoise
from .metrics import MIMLossMetric
from .model import EVAForMIM
from .preprocessor import PretrainDataPreprocessor
from .targets import CodebookClassification, CosineRegression
from .teacher import CLIPTeacher
from .transforms import PackImage, ResizeCenterCrop, TwoViewCrop

__all__ = [
    'AlternatingMask',
    'BlockMask',
    'CLIPTeacher',
    'CaptionedImages',
    'CodebookClassification',
    'ContrastiveCLIP',
    'CosineRegression',
    'EVAForMIM',
    'EVAMAE',
    'FeatureCacheHook',
    'MIMLossMetric',
    'MaskNoise',
    'PackImage',
    'PretrainDataPreprocessor',
    'PretrainingImages',
    'ResizeCenterCrop',
    'RetrievalMetric',
    'TokenizeCaption',
    'TwoViewCrop',
]
