"""mmseg's data sets with augmentations that a resumed run repeats exactly."""

from mmseg.datasets import ADE20KDataset, COCOStuffDataset
from mmseg.registry import DATASETS

from eva_mm.engine.exact_data import PositionSeeded


@DATASETS.register_module()
class EVAADE20KDataset(PositionSeeded, ADE20KDataset):
    """ADE20K's 150 classes, augmented by seed and position (:class:`PositionSeeded`)."""


@DATASETS.register_module()
class EVACOCOStuffDataset(PositionSeeded, COCOStuffDataset):
    """COCO-Stuff-164K's 171 classes, augmented by seed and position (:class:`PositionSeeded`)."""
