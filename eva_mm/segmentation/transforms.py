"""What mmseg's transforms lack: label maps that are checked, and padding as EVA's tests have it."""

from __future__ import annotations

from collections.abc import Mapping

import mmcv
import mmengine.fileio as fileio
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import TRANSFORMS

from eva_mm.engine.unreadable import BrokenImageError
from eva_mm.errors import InputError, MissingFileError

IGNORED = 255
_SHOWN = 8  # values in a message
_REFUSED = -1


@TRANSFORMS.register_module()
class PadAtLeast(BaseTransform):
    """Pad an image with black on the right and at the bottom, up to a size; larger ones stay.

    EVA's multi-scale tests pad before normalisation (EVA-01/seg/configs/ade20k); mmseg's data
    preprocessor pads after it. The predicted map is cut back by ``padding_size``, which
    ``PackSegInputs`` has to keep among its ``meta_keys``.

    Args:
        size: (height, width) in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = tuple(size)

    def transform(self, results: dict) -> dict:
        """Pads ``img``; adds ``padding_size`` (left, right, top, bottom)."""
        image = results['img']
        h, w = image.shape[:2]
        padded = mmcv.impad(image, shape=(max(h, self.size[0]), max(w, self.size[1])), pad_val=0)
        results['img'] = padded
        results['img_shape'] = results['pad_shape'] = padded.shape[:2]
        results['padding_size'] = [0, padded.shape[1] - w, 0, padded.shape[0] - h]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size})'


class CheckedLabels(LoadAnnotations):
    """mmseg's ``LoadAnnotations`` that refuses label maps which mean something else.

    The data sets of this package put it in the place of that transform. mmseg itself cuts numbers
    to 8 bits, trains on numbers that no class has, and leaves them out of the scores.

    Args:
        num_labels: classes that the files tell apart (those of the data set before some are chosen
            by ``metainfo``).
        like: the transform that it replaces.
    """

    def __init__(self, num_labels: int, like: LoadAnnotations) -> None:
        super().__init__(backend_args=like.backend_args, imdecode_backend=like.imdecode_backend)
        self.reduce_zero_label = like.reduce_zero_label
        self.num_labels = num_labels

    def _load_seg_map(self, results: dict) -> None:
        path = results['seg_map_path']
        label = read_label(path, self.imdecode_backend, self.backend_args)
        height, width = results['ori_shape'][:2]
        if label.shape != (height, width):
            raise InputError(
                f'label map {path} is {label.shape[1]} x {label.shape[0]} px, but its image '
                f'{results.get("img_path")} is {width} x {height} px (upright, after its EXIF '
                f'rotation)'
            )
        reduce_zero_label = results['reduce_zero_label']
        if self.reduce_zero_label not in (None, reduce_zero_label):
            raise InputError(
                f'reduce_zero_label is {reduce_zero_label} in the data set and '
                f'{self.reduce_zero_label} in LoadAnnotations: leave the latter out'
            )
        table = label_table(self.num_labels, reduce_zero_label, results.get('label_map'))
        results['gt_seg_map'] = look_up(label, table, path)
        results['seg_fields'].append('gt_seg_map')


def read_label(path: str, backend: str = 'pillow', backend_args: dict | None = None) -> np.ndarray:
    """Read a label map: (h, w), numbers of classes.

    Raises:
        MissingFileError: there is no such file.
        BrokenImageError: it is no picture, or half of one.
        InputError: it has several channels, or numbers that are not whole.
    """
    try:
        data = fileio.get(path, backend_args=backend_args)
        label = mmcv.imfrombytes(data, flag='unchanged', backend=backend)
    except FileNotFoundError as error:
        raise MissingFileError(f'label map not found: {path}') from error
    except Exception as error:  # PIL's readers raise anything on damaged data
        raise BrokenImageError(
            f'cannot read label map {path}: {type(error).__name__}: {error}'
        ) from error
    if label.ndim == 3 and label.shape[2] == 1:
        label = label[..., 0]
    if label.ndim != 2:
        raise InputError(
            f'label map {path} has {label.shape[2]} channels: expected one, the number of the '
            f'class of each pixel (colours have to be turned into numbers first)'
        )
    if label.dtype.kind not in 'biu':
        raise InputError(
            f'label map {path} holds numbers of type {label.dtype}: expected whole numbers, those '
            f'of the classes'
        )
    return label.astype(np.uint8) if label.dtype == bool else label


def label_table(
    num_labels: int, reduce_zero_label: bool, label_map: Mapping[int, int] | None = None
) -> np.ndarray:
    """(256,) int16: number in a file -> index of the class, 255 for ignored, -1 for refused.

    Args:
        num_labels: classes that the files tell apart.
        reduce_zero_label: 0 stands for ignored, and classes count from 1.
        label_map: class of the files -> class of the data set, where some are chosen.

    Raises:
        InputError: more classes than 8 bits tell apart beside what is ignored.
    """
    first = 1 if reduce_zero_label else 0
    if num_labels > IGNORED - first:
        raise InputError(
            f'{num_labels} classes: expected at most {IGNORED - first}, since label maps are read '
            f'in 8 bits and {IGNORED}{" and 0 are" if first else " is"} ignored'
        )
    table = np.full(256, _REFUSED, np.int16)
    table[first : first + num_labels] = np.arange(num_labels)
    for old, new in (label_map or {}).items():
        table[first + old] = new
    table[:first] = table[IGNORED] = IGNORED
    return table


def look_up(label: np.ndarray, table: np.ndarray, path: str) -> np.ndarray:
    """Numbers of a file (h, w) -> indices of classes (h, w) uint8.

    Raises:
        InputError: numbers that the table refuses; names file and numbers.
    """
    within = label.dtype == np.uint8 or (label.min() >= 0 and label.max() < len(table))
    if within:
        found = table[label]
        if found.min() != _REFUSED:
            return found.astype(np.uint8)
    raise InputError(f'label map {path} has {_refused(label, table)}')


def _refused(label: np.ndarray, table: np.ndarray) -> str:
    values, counts = np.unique(label, return_counts=True)
    bad = [
        (int(value), int(count))
        for value, count in zip(values, counts)
        if not 0 <= value < len(table) or table[int(value)] == _REFUSED
    ]
    shown = ', '.join(f'{value} ({count} px)' for value, count in bad[:_SHOWN])
    more = f' and {len(bad) - _SHOWN} more' if len(bad) > _SHOWN else ''
    known = np.flatnonzero((table != _REFUSED) & (np.arange(len(table)) != IGNORED))
    return (
        f'the values {shown}{more}, which no class has: expected {known[0]} to {known[-1]}, and '
        f'{IGNORED} for ignored'
    )
