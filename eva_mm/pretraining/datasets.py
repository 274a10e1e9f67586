"""Images without labels, for pretraining."""

from __future__ import annotations

from typing import Any

from mmengine.registry import DATASETS

from eva_mm.engine.exact_data import PositionedIndex, seeded
from eva_mm.engine.image_data import ImageDataset
from eva_mm.errors import InputError, UsageError


@DATASETS.register_module()
class PretrainingImages(ImageDataset):
    """Images of folders or file lists; labels and class folders are ignored.

    The published run has one folder with a sub-folder for each source (ImageNet-21K, CC12M, CC3M,
    Objects365, COCO, ADE20K: arXiv 2211.07636, table 3), as ``data_root``; several folders do as
    well. For the arguments see :class:`~eva_mm.engine.image_data.ImageDataset`.

    Args:
        num_views: augment image i in epoch e as in epoch e mod ``num_views``, so that a teacher's
            features of each view can be kept; a sample then has ``cache_slot`` = i * num_views +
            e mod num_views. None: every epoch differs, as published. Indices must know their
            position then (``ExactInfiniteSampler``).

    Raises:
        InputError: see :class:`~eva_mm.engine.image_data.ImageDataset`; or ``num_views`` < 1.
    """

    def __init__(self, *args: Any, num_views: int | None = None, **kwargs: Any) -> None:
        if num_views is not None and num_views < 1:
            raise InputError(f'num_views must be at least 1 or None, got {num_views}')
        self.num_views = num_views
        super().__init__(*args, **kwargs)

    @property
    def num_slots(self) -> int | None:
        """Number of different views of all images; None without ``num_views``."""
        return None if self.num_views is None else len(self) * self.num_views

    def get_data_info(self, idx: int) -> dict:
        """``img_path`` of an image."""
        return dict(img_path=super().get_data_info(idx)['img_path'])

    def __getitem__(self, idx: int) -> dict:
        """Load a sample; see the class."""
        if self.num_views is None:
            return super().__getitem__(idx)
        if not isinstance(idx, PositionedIndex):
            raise UsageError(
                'num_views needs indices that know their epoch: expected '
                "sampler=dict(type='ExactInfiniteSampler') in the data loader"
            )
        view = idx.position // len(self) % self.num_views
        with seeded(idx.seed, int(idx), view):
            sample = self.prepare_data(int(idx))
        return dict(sample, cache_slot=int(idx) * self.num_views + view)
