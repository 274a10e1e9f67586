"""Images without labels, for pretraining."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
from mmengine.dataset import Compose
from mmengine.registry import DATASETS

from eva_mm.engine.exact_data import PositionedIndex, seeded
from eva_mm.engine.image_data import ImageDataset
from eva_mm.errors import InputError, UsageError

from .masking import Masking

NO_SLOT = -1  # of samples whose features are not to be kept
_NUM_LOOKED_AT = 256  # images whose content counts for the digest


@DATASETS.register_module()
class PretrainingImages(ImageDataset):
    """Images of folders or file lists; labels and class folders are ignored.

    The published run has one folder with a sub-folder for each source (ImageNet-21K, CC12M, CC3M,
    Objects365, COCO, ADE20K: arXiv 2211.07636, table 3), as ``data_root``; several folders do as
    well. For the arguments see :class:`~eva_mm.engine.image_data.ImageDataset`.

    Args:
        num_views: crop and flip image i in epoch e as in epoch e mod ``num_views``, so that a
            teacher's features of each view can be kept; a sample then has ``cache_slot`` = i *
            num_views + e mod num_views, or -1 if another image stands in for an unreadable one.
            Masks still differ from epoch to epoch. Indices must know their position
            (``ExactInfiniteSampler``). None: every epoch differs in all, as published.

    Raises:
        InputError: see :class:`~eva_mm.engine.image_data.ImageDataset`; or ``num_views`` < 1.
    """

    def __init__(self, *args: Any, num_views: int | None = None, **kwargs: Any) -> None:
        if num_views is not None and num_views < 1:
            raise InputError(f'num_views must be at least 1 or None, got {num_views}')
        self.num_views = num_views
        super().__init__(*args, **kwargs)
        if num_views is not None:
            # Masks look at nothing of the sample, so they may come after all else.
            steps = self.pipeline.transforms
            self.masks = Compose([step for step in steps if isinstance(step, Masking)])
            self.pipeline = Compose([step for step in steps if not isinstance(step, Masking)])

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
        with seeded(idx.seed, idx.position):
            sample = self.masks(sample)
        # A read that fails once must not leave another image's features in this one's place.
        is_own = sample['img_path'] == self.get_data_info(int(idx))['img_path']
        return dict(sample, cache_slot=int(idx) * self.num_views + view if is_own else NO_SLOT)

    def digest(self) -> str:
        """SHA-256 of folders, names and order of the images, and of the content of some."""
        digest = hashlib.sha256(super().digest().encode())
        for images in self.lists:
            digest.update(os.fsencode(os.path.realpath(images.root)) + b'\0')
        for index in np.linspace(0, len(self) - 1, min(len(self), _NUM_LOOKED_AT)).astype(int):
            digest.update(_content(self.get_data_info(int(index))['img_path']))
        return digest.hexdigest()


def _content(path: str) -> bytes:
    """SHA-256 of a file; of nothing if it cannot be read, which loading it will tell."""
    try:
        with open(path, 'rb') as file:
            return hashlib.file_digest(file, 'sha256').digest()
    except OSError:
        return hashlib.sha256().digest()
