"""Pictures with label maps: mmseg's data sets, checked, repeatable, and folders of one's own."""

from __future__ import annotations

import colorsys
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
from mmseg.datasets import ADE20KDataset, BaseSegDataset, COCOStuffDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS

from eva_mm.engine.exact_data import PositionSeeded
from eva_mm.engine.image_data import list_images
from eva_mm.engine.unreadable import BrokenImageError, MissingImageError, ReplacesUnreadable
from eva_mm.errors import InputError, MissingFileError

from .transforms import CheckedLabels

_SHOWN = 3  # files in a message


class CheckedSegDataset(PositionSeeded, ReplacesUnreadable):
    """Mixin of mmseg's data sets; stands before one in the bases.

    Augmentations depend on seed and position alone (:class:`PositionSeeded`). Folders and files
    that are missing are told before the first image, where the pipeline loads label maps; a map
    that does not belong to its image or whose numbers no class has is refused when it is read
    (:class:`~eva_mm.segmentation.transforms.CheckedLabels`).

    Args:
        skip_unreadable: train with the next readable image in place of one that is missing or
            broken, or whose map is broken, instead of stopping; each is logged, and
            ``UnreadableImagesHook`` reports how many there were. Test sets always stop.

    Raises:
        MissingFileError: a folder is not there, or images have no label map.
        InputError: no image.
    """

    def __init__(self, *args: Any, skip_unreadable: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, skip_unreadable=skip_unreadable, **kwargs)
        self._check_labels_in(self.pipeline.transforms)

    def _check_labels_in(self, steps: list) -> None:
        """Put :class:`CheckedLabels` wherever label maps are loaded, in each view of a test too.

        Here and not in the configs, since mmseg's inferencers drop ``LoadAnnotations`` by name.
        """
        for index, step in enumerate(steps):
            if type(step) is LoadAnnotations:
                steps[index] = CheckedLabels(self.num_file_labels, step)
            for inner in getattr(step, 'subroutines', ()):
                self._check_labels_in(inner.transforms)

    @property
    def num_file_labels(self) -> int:
        """Classes that the files tell apart, of which ``metainfo`` may choose some."""
        return len(self.label_map or self.metainfo['classes'])

    def load_data_list(self) -> list[dict]:
        """mmseg's records; see the class for what is checked."""
        self._require_folder('img_path', 'image')
        needs_labels = _loads_labels(self.pipeline.transforms)
        if needs_labels:
            self._require_folder('seg_map_path', 'label map')
        records = self.find_records()
        if not records:
            raise InputError(
                f'no image ending in {self.img_suffix} below {self.data_prefix["img_path"]}'
            )
        if needs_labels:
            self._require_labels(records)
        return records

    def find_records(self) -> list[dict]:
        """Images and label maps, as mmseg finds them by their suffixes or in ``ann_file``."""
        return super().load_data_list()

    def _require_folder(self, key: str, what: str) -> None:
        folder = self.data_prefix.get(key) or ''
        if self.backend_args is None and not os.path.isdir(folder):
            raise MissingFileError(
                f'{what} folder not found: {folder or "none is named"} (check data_root and '
                f'data_prefix.{key})'
            )

    def _require_labels(self, records: list[dict]) -> None:
        if self.backend_args is not None:
            return
        missing = missing_files(record['seg_map_path'] for record in records)
        if missing:
            shown = ', '.join(missing[:_SHOWN]) + (' ...' if len(missing) > _SHOWN else '')
            raise MissingFileError(
                f'{len(missing)} of {len(records)} images in {self.data_prefix["img_path"]} have '
                f'no label map: expected {shown}'
            )

    def prepare_data(self, idx: int) -> Any:
        """Run the pipeline.

        Raises:
            MissingImageError, BrokenImageError: the image or its map cannot be read (see
                ``skip_unreadable``).
            InputError: the map does not fit.
        """
        if not self.skip_unreadable or self.test_mode:
            return self._prepare(idx)
        others = ((idx + offset) % len(self) for offset in range(len(self)))
        source = self.data_prefix['img_path']
        return self.load_first_readable(others, self._prepare, 'the next image', source)

    def _prepare(self, idx: int) -> Any:
        try:
            return super().prepare_data(idx)
        except InputError:
            raise
        except (OSError, SyntaxError, cv2.error, AssertionError) as error:
            if not _is_unreadable(error):
                raise
            path = self.get_data_info(idx)['img_path']
            if isinstance(error, FileNotFoundError):
                raise MissingImageError(f'image not found: {path}') from error
            raise BrokenImageError(f'cannot read image {path}: {error}') from error


def _loads_labels(steps: Iterable) -> bool:
    return any(
        isinstance(step, LoadAnnotations)
        or any(_loads_labels(inner.transforms) for inner in getattr(step, 'subroutines', ()))
        for step in steps
    )


def _is_unreadable(error: BaseException) -> bool:
    """Whether OpenCV, PIL or mmcv raised this for a file that is no picture, or half of one."""
    if isinstance(error, cv2.error):
        return 'imdecode' in str(error)
    if isinstance(error, AssertionError):  # OpenCV gave nothing
        return 'failed to load image' in str(error)
    return isinstance(error, (OSError, SyntaxError))


def missing_files(paths: Iterable[str]) -> list[str]:
    """Paths of which there is no file; each folder is listed once."""
    listed: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listed[folder]:
            missing.append(path)
    return missing


@DATASETS.register_module()
class EVAADE20KDataset(CheckedSegDataset, ADE20KDataset):
    """ADE20K's 150 classes; see :class:`CheckedSegDataset`."""


@DATASETS.register_module()
class EVACOCOStuffDataset(CheckedSegDataset, COCOStuffDataset):
    """COCO-Stuff-164K's 171 classes; see :class:`CheckedSegDataset`."""


@DATASETS.register_module()
class EVASegmentationFolder(CheckedSegDataset, BaseSegDataset):
    """Images of any format and a label map beside each, classes given.

    Images lie below ``data_prefix['img_path']`` at any depth; the map of ``a/b.jpg`` is
    ``a/b<seg_map_suffix>`` below ``data_prefix['seg_map_path']``. The numbers in the maps are the
    places of ``metainfo['classes']`` from 0, or from 1 with ``reduce_zero_label``; 255 is ignored.
    Without a palette, hues are dealt out evenly. See also :class:`CheckedSegDataset`.

    Args:
        holdout: ``dict(part='train' or 'val', fraction=..., seed=...)`` takes one part of the
            images. Who is where depends on the paths below the folder and the seed alone.
        **kwargs: of mmseg's ``BaseSegDataset``.

    Raises:
        InputError: fewer than two images to be split; two images of one map.
    """

    def __init__(self, *args: Any, holdout: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self._holdout = holdout
        super().__init__(*args, **kwargs)

    def _update_palette(self) -> list:
        if self._metainfo.get('palette'):
            return super()._update_palette()
        return distinct_colours(len(self._metainfo.get('classes') or ()))

    def find_records(self) -> list[dict]:
        """One record per image, by path."""
        folder, labels = self.data_prefix['img_path'], self.data_prefix.get('seg_map_path') or ''
        images = list_images(folder)
        names = [images.relative(index) for index in range(len(images))]
        _refuse_twins(names, folder)
        if self._holdout is not None:
            names = take_part(names, folder, **self._holdout)
        return [
            dict(
                img_path=os.path.join(folder, name),
                seg_map_path=os.path.join(labels, os.path.splitext(name)[0] + self.seg_map_suffix),
                label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for name in sorted(names)
        ]


def _refuse_twins(names: list[str], folder: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        stem = os.path.splitext(name)[0]
        if stem in seen:
            raise InputError(f'{seen[stem]} and {name} in {folder} would have the same label map')
        seen[stem] = name


def take_part(names: list[str], folder: str, part: str, fraction: float, seed: int = 0) -> list:
    """Training or validation part of some files, by a hash of their names and a seed.

    Raises:
        InputError: fewer than two files, or an unknown part.
    """
    if part not in ('train', 'val'):
        raise InputError(f"holdout.part should be 'train' or 'val', but got {part!r}")
    if len(names) < 2:
        raise InputError(f'{len(names)} image of {folder} cannot be split: expected two or more')
    order = sorted(
        names, key=lambda name: hashlib.sha1(f'{seed}:'.encode() + os.fsencode(name)).digest()
    )
    held = min(max(1, round(fraction * len(names))), len(names) - 1)
    return order[:held] if part == 'val' else order[held:]


def distinct_colours(number: int) -> list[list[int]]:
    """RGB colours, 0 to 255: hues far from one another, bright and dark, pale and full."""
    golden = 0.61803398875
    colours = []
    for index in range(number):
        value, saturation = (0.95, 0.7, 0.5)[index % 3], (0.9, 0.55)[index // 3 % 2]
        rgb = colorsys.hsv_to_rgb(index * golden % 1, saturation, value)
        colours.append([round(255 * channel) for channel in rgb])
    return colours


def read_class_names(file: Path) -> list[str]:
    """Names in a text file, a line each.

    Raises:
        InputError: no text, no name, or one twice.
    """
    try:
        lines = file.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f'class file {file} is no text: expected a name per line') from error
    names = [line.strip() for line in lines if line.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        raise InputError(
            f'class file {file}: expected class names, each once; found {twice[:5] or "none"}'
        )
    return names
