"""COCO and LVIS data lists as the published detector reads them.

Source: github.com/baaivision/EVA, EVA-01/det/detectron2/data/{build.py,datasets/coco.py,
datasets/lvis.py}. What differs from mmdet's own data sets:

* training drops crowd regions, then images without any instance; nothing is dropped for being
  small (large-scale jitter drops what vanishes);
* class names come from the annotation file, labels follow the sorted category ids;
* LVIS is read without the ``lvis`` package, version 1 and 0.5 alike.
"""

import itertools
import json
import logging
import math
import os.path as osp
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import cv2
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.fileio import get_text
from mmengine.logging import print_log

from eva_mm.engine.exact_data import PositionSeeded
from eva_mm.engine.unreadable import BrokenImageError, MissingImageError, ReplacesUnreadable
from eva_mm.errors import InputError, MissingFileError

REQUIRED_FIELDS = {
    'images': ('id', 'width', 'height'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id'),
}


def load_annotation_file(path: str, backend_args: dict | None = None) -> dict:
    """Reads a COCO or LVIS annotation file.

    Args:
        path: JSON file with ``images``, ``categories`` and (unless a test set) ``annotations``.
        backend_args: of mmengine's file backend.

    Returns:
        The parsed file; ``annotations`` is an empty list when absent.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is empty, no JSON, lacks a list, or an entry lacks a field; the message
            names file, entry and field.
    """
    try:
        text = get_text(path, backend_args=backend_args)
    except FileNotFoundError as error:
        raise MissingFileError(
            f'annotation file not found: {path} (check data_root and ann_file)'
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f'annotation file is not text: {path}: {error}') from error
    if not text.strip():
        raise InputError(f'annotation file is empty: {path}')
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f'annotation file is not valid JSON: {path}: {error}') from error
    if not isinstance(data, dict):
        raise InputError(
            f'annotation file {path}: expected an object with images and categories, '
            f'found a {type(data).__name__} (a results file?)'
        )
    data.setdefault('annotations', [])
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(data.get(key), list):
            raise InputError(f'annotation file {path}: expected a list under {key!r}, found none')
    for key, fields in REQUIRED_FIELDS.items():
        require_fields(data[key], key, fields, path)
    for image in data['images']:
        sides = (image['width'], image['height'])
        if not _are_numbers(sides) or min(sides) <= 0:
            raise InputError(
                f'annotation file {path}: image id={image["id"]} is {image["width"]} x '
                f'{image["height"]} px, expected positive width and height'
            )
    return data


def require_fields(entries: list, section: str, fields: Iterable[str], path: str) -> None:
    """Makes sure that every entry of a list is an object with certain fields.

    Raises:
        ValueError: naming the first entry and field.
    """
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(
                f'annotation file {path}: {section}[{index}] should be an object, '
                f'found {str(entry)[:40]}'
            )
        for field in fields:
            if field not in entry:
                raise InputError(
                    f'annotation file {path}: {section}[{index}] (id={entry.get("id")}) has no '
                    f'{field!r}, found {sorted(entry)[:8]}'
                )


def _are_numbers(values: Iterable) -> bool:
    """Whether all are finite numbers; by one sum, as LVIS has 76 million coordinates."""
    try:
        return math.isfinite(math.fsum(values))
    except (TypeError, ValueError, OverflowError):
        return False


def check_lvis_fields(data: dict, path: str) -> None:
    """Makes sure that an annotation file carries what LVIS adds to COCO.

    Raises:
        ValueError: naming the first image or category that lacks a field.
    """
    needs = {
        'images': ('neg_category_ids', 'not_exhaustive_category_ids'),
        'categories': ('frequency',),
    }
    for section, fields in needs.items():
        for entry in data[section]:
            for field in fields:
                if field not in entry:
                    raise InputError(
                        f'annotation file {path} is not LVIS: {section} entry '
                        f'id={entry.get("id")} has no {field!r} (for COCO use EVACocoDataset '
                        f'and EVACocoMetric)'
                    )


def lvis_image_file(image: dict) -> str:
    """File of an LVIS image relative to COCO's root, e.g. ``train2017/000000391895.jpg``.

    The folder is known from ``coco_url`` alone (LVIS splits COCO's images anew). Files without
    it fall back on ``file_name``, less version 0.5's ``COCO_val2014_`` prefix.
    """
    if image.get('coco_url'):
        return '/'.join(image['coco_url'].split('/')[-2:])
    name = image['file_name']
    return name.rsplit('_', 1)[-1] if name.startswith('COCO_') else name


def _is_unreadable(error: BaseException) -> bool:
    """Whether PIL, OpenCV or mmcv raised this for a file that is no picture, or half of one."""
    if isinstance(error, cv2.error):
        return 'imdecode' in str(error)
    if isinstance(error, AssertionError):  # OpenCV gave nothing
        return 'failed to load image' in str(error)
    return isinstance(error, (OSError, SyntaxError))


@DATASETS.register_module()
class EVACocoDataset(PositionSeeded, ReplacesUnreadable, CocoDataset):
    """COCO-format instances, chosen and ordered as in the published training.

    Arguments are those of mmdet's ``CocoDataset``. Without ``metainfo`` the classes are those
    of the annotation file. A training set (``test_mode=False``) holds no crowd regions, and no
    image without instances unless ``filter_cfg=dict(filter_empty_gt=False)``; a test set keeps
    every image, and crowds as instances with ``ignore_flag`` 1. Augmentations are seeded by the
    sample's position (see :class:`PositionSeeded`).

    Boxes need not lie inside their images, nor be positive: with masks they are computed from the
    clipped masks, without masks they are clipped, and what has no extent is dropped
    (:class:`LargeScaleJitter`). Polygons of fewer than three points are left out, and so is an
    instance that has no others, unless the pipeline loads boxes alone. Masks as run lengths need
    bitmaps (``LoadAnnotations(poly2mask=True)``).

    Args:
        skip_unreadable: train with the next readable image in place of one that is missing or
            broken, instead of stopping; each is logged, and ``UnreadableImagesHook`` reports how
            many there were. Test sets always stop: a missing image would change the AP.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_annotation_file`; also for classes that
            the file lacks, for annotations of unknown images or categories, and for boxes and
            masks of a wrong form.
    """

    # Empty on purpose: CocoDataset's 80 names would mislabel any other COCO-format file.
    METAINFO: dict = {}

    def load_data_list(self) -> list[dict]:
        """Reads ``ann_file``; one record per image, in ascending image id."""
        data = self._read_annotations()
        for section in ('images', 'categories', 'annotations'):
            self._require_unique_ids(section, data[section])
        self._set_categories(data['categories'])
        images = {image['id']: image for image in data['images']}
        annotations = self._annotations_by_image(data['annotations'], images)
        self._check_content(data)
        self.cat_img_map = defaultdict(list)
        for image_id, entries in annotations.items():
            for category_id in {entry['category_id'] for entry in entries}:
                self.cat_img_map[category_id].append(image_id)
        self._set_metainfo(data)
        self._num_pointless = 0
        self._mask_loader = next(
            (t for t in self.pipeline.transforms if getattr(t, 'with_mask', False)), None
        )
        self._boxes_alone = self._mask_loader is None and any(
            getattr(t, 'with_bbox', False) for t in self.pipeline.transforms
        )
        records = [
            self.parse_data_info(
                dict(
                    raw_img_info=dict(images[image_id], img_id=image_id),
                    raw_ann_info=annotations.get(image_id, []),
                )
            )
            for image_id in sorted(images)
        ]
        if self._num_pointless:
            print_log(
                f'{self.ann_file}: {self._num_pointless} instances are left out, none of their '
                'polygons has three points',
                'current',
                logging.WARNING,
            )
        return records

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Turns one image and its annotations into mmdet's record.

        Returns:
            ``img_path``, ``img_id``, ``height``, ``width`` (pixels) and ``instances``, each
            with ``bbox`` (x1, y1, x2, y2), ``bbox_label``, ``ignore_flag``, ``ann_id`` and, if
            annotated, ``mask`` (polygons or RLE).
        """
        image = raw_data_info['raw_img_info']
        info = dict(
            img_path=osp.join(self.data_prefix.get('img', ''), self.image_file(image)),
            img_id=image['img_id'],
            seg_map_path=None,
            height=image['height'],
            width=image['width'],
        )
        parsed = (self._parse_instance(entry, image) for entry in raw_data_info['raw_ann_info'])
        info['instances'] = [instance for instance in parsed if instance is not None]
        if self.return_classes:
            info.update(
                text=self.metainfo['classes'],
                caption_prompt=self.caption_prompt,
                custom_entities=True,
            )
        return info

    def image_file(self, image: dict) -> str:
        """Path of an image below ``data_prefix['img']``."""
        require_fields([image], 'images', ('file_name',), self.ann_file)
        return image['file_name']

    def filter_data(self) -> list[dict]:
        """Drops images without instances (see the class) and those below ``min_size`` pixels."""
        if self.test_mode:
            return self.data_list
        config = self.filter_cfg or {}
        drop_empty, min_size = config.get('filter_empty_gt', True), config.get('min_size', 0)
        kept = [
            info
            for info in self.data_list
            if (info['instances'] or not drop_empty)
            and min(info['width'], info['height']) >= min_size
        ]
        if not kept:
            raise InputError(
                f'{self.ann_file}: none of {len(self.data_list)} images is left for training '
                f'(an image needs an instance that is no crowd, of one of '
                f'{len(self.cat_ids)} classes)'
            )
        return kept

    def prepare_data(self, idx):
        """Runs the pipeline; an image that cannot be read is named together with its source.

        Raises:
            FileNotFoundError, OSError: the image is missing or broken (see ``skip_unreadable``).
            ValueError: it has another size than annotated, which would misplace every target.
        """
        if not self.skip_unreadable or self.test_mode:
            return self._prepare(idx)
        others = (other % len(self) for other in range(idx + 1, idx + len(self)))
        candidates = itertools.chain([idx], others)
        return self.load_first_readable(candidates, self._prepare, 'the next image', self.ann_file)

    def _prepare(self, idx):
        try:
            results = super().prepare_data(idx)
        except (OSError, SyntaxError, cv2.error, AssertionError) as error:
            if not _is_unreadable(error):
                raise
            path = self.get_data_info(idx)['img_path']
            kind = MissingImageError if isinstance(error, FileNotFoundError) else BrokenImageError
            raise kind(
                f'cannot read image {path}, listed in {self.ann_file} (check data_prefix): {error}'
            ) from error
        self._check_size(idx, results)
        return results

    def _check_size(self, idx: int, results: Any) -> None:
        sample = results.get('data_samples') if isinstance(results, dict) else None
        if not isinstance(sample, DetDataSample) or 'ori_shape' not in sample:
            return
        info = self.get_data_info(idx)
        annotated = (info['height'], info['width'])
        if tuple(sample.ori_shape[:2]) != annotated:
            height, width = sample.ori_shape[:2]
            raise InputError(
                f'image {info["img_path"]} is {width} x {height} px (upright, after its EXIF '
                f'rotation), but {annotated[1]} x {annotated[0]} px in {self.ann_file}'
            )

    def _read_annotations(self) -> dict:
        return load_annotation_file(self.ann_file, self.backend_args)

    def _require_unique_ids(self, section: str, entries: list[dict]) -> None:
        """Of two entries with one id, a table by id would keep the last without a word."""
        seen = set()
        for entry in entries:
            if entry['id'] in seen:
                raise InputError(
                    f'{self.ann_file}: {section} are not unique, id={entry["id"]} twice'
                )
            seen.add(entry['id'])

    def _set_categories(self, categories: list[dict]) -> None:
        """Fixes ``cat_ids``, ``cat2label`` and the class names, by ascending category id."""
        names = {category['id']: category['name'] for category in categories}
        wanted = self._metainfo.get('classes')
        if wanted is not None:
            missing = sorted(set(wanted) - set(names.values()))
            if missing:
                raise InputError(
                    f'{self.ann_file} has no category named {", ".join(missing[:5])}'
                    f'{" ..." if len(missing) > 5 else ""} ({len(missing)} of {len(wanted)} '
                    f'classes of metainfo are unknown; it has {len(names)} categories)'
                )
            names = {i: name for i, name in names.items() if name in set(wanted)}
        self.cat_ids = sorted(names)
        self.cat2label = {category_id: label for label, category_id in enumerate(self.cat_ids)}
        classes = tuple(names[category_id] for category_id in self.cat_ids)
        if wanted is not None and tuple(wanted) != classes:
            # Labels follow category ids everywhere (metrics map them back in the same way).
            print_log(
                f'{self.ann_file}: classes of metainfo are reordered by category id',
                logger='current',
                level=logging.WARNING,
            )
        self._metainfo['classes'] = classes
        # In checkpoints, so that what a model finds elsewhere gets the ids of its own data.
        self._metainfo['category_ids'] = tuple(self.cat_ids)

    def _set_metainfo(self, data: dict) -> None:
        """Hook for further meta information; called when the categories are known."""

    def _check_content(self, data: dict) -> None:
        for key in ('images', 'categories'):
            if not data[key]:
                raise InputError(f'{self.ann_file} lists no {key}')
        known = {category['id'] for category in data['categories']}
        for entry in data['annotations']:
            if entry['category_id'] not in known:
                raise InputError(
                    f'{self.ann_file}: annotation id={entry["id"]} is of category '
                    f'{entry["category_id"]}, which is not listed under categories'
                )

    def _annotations_by_image(self, annotations: list, images: dict) -> dict[int, list[dict]]:
        grouped = defaultdict(list)
        for entry in annotations:
            if entry['image_id'] not in images:
                raise InputError(
                    f'{self.ann_file}: annotation id={entry.get("id")} belongs to image '
                    f'{entry["image_id"]}, which is not listed under images'
                )
            grouped[entry['image_id']].append(entry)
        return grouped

    def _parse_instance(self, entry: dict, image: dict) -> dict | None:
        crowd = bool(entry.get('iscrowd', 0))
        if entry.get('ignore') or entry['category_id'] not in self.cat2label:
            return None
        if crowd and not self.test_mode:
            return None
        x, y, width, height = self._box(entry)
        instance = dict(
            bbox=[x, y, x + width, y + height],
            bbox_label=self.cat2label[entry['category_id']],
            ignore_flag=int(crowd),
            ann_id=entry['id'],
        )
        mask = entry.get('segmentation')
        if isinstance(mask, list) and mask:
            # A polygon needs three points; an instance without any is no instance in detectron2.
            mask = [part for part in mask if self._is_polygon(part, entry)]
            if not mask and (self.test_mode or not self._boxes_alone):
                self._num_pointless += 1
                return None
        elif isinstance(mask, dict):
            self._check_run_lengths(mask, entry, image)
        if mask:
            instance['mask'] = mask
        if not self.test_mode:
            self._check_loadable(mask, entry)
        return instance

    def _box(self, entry: dict) -> list[float]:
        box = entry.get('bbox')
        if not (isinstance(box, list) and len(box) == 4 and _are_numbers(box)):
            raise self._wrong(entry, f'bbox should be [x, y, width, height], found {box}')
        return box

    def _is_polygon(self, part: Any, entry: dict) -> bool:
        if not (isinstance(part, list) and _are_numbers(part)):
            raise self._wrong(
                entry,
                'segmentation should be polygons [[x1, y1, x2, y2, ...], ...] or run lengths, '
                f'found {str(part)[:40]}',
            )
        return len(part) % 2 == 0 and len(part) >= 6

    def _check_run_lengths(self, mask: dict, entry: dict, image: dict) -> None:
        size, counts = mask.get('size'), mask.get('counts')
        expected = [image['height'], image['width']]
        if size is None or not isinstance(counts, (list, str)):
            raise self._wrong(
                entry, f'run lengths should have size and counts, found {sorted(mask)}'
            )
        if list(size) != expected:
            raise self._wrong(
                entry, f'its mask is {list(size)} (height, width), its image is {expected}'
            )
        if isinstance(counts, list) and sum(counts) != expected[0] * expected[1]:
            raise self._wrong(
                entry, f'run lengths sum to {sum(counts)}, expected {expected[0] * expected[1]}'
            )

    def _check_loadable(self, mask: Any, entry: dict) -> None:
        """mmdet would turn what its loader cannot take into nothing, without a word."""
        if self._mask_loader is None:
            return
        if not mask:
            raise self._wrong(
                entry,
                'no segmentation, which the pipeline loads (LoadAnnotations with_mask=True)',
            )
        if isinstance(mask, dict) and not self._mask_loader.poly2mask:
            raise self._wrong(
                entry,
                'its mask is run lengths, the pipeline takes polygons; set poly2mask=True in '
                'LoadAnnotations to train on bitmaps',
            )

    def _wrong(self, entry: dict, what: str) -> InputError:
        return InputError(
            f'{self.ann_file}: annotation id={entry["id"]} (image {entry["image_id"]}): {what}'
        )


@DATASETS.register_module()
class EVALVISDataset(EVACocoDataset):
    """LVIS v1 or v0.5, read without the ``lvis`` package.

    Images are looked up as ``data_prefix['img']/train2017/000000391895.jpg``. Records also hold
    ``neg_category_ids`` and ``not_exhaustive_category_ids`` (category ids, not labels).
    ``metainfo['image_counts']`` holds the number of training images per class, indexed by
    label: what the federated loss samples by. It is LVIS's ``image_count`` field, or counted
    in this file when the field is absent.

    Raises:
        ValueError: the file lacks a field that makes it LVIS.
    """

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Adds the image's negative and not exhaustively annotated categories."""
        info = super().parse_data_info(raw_data_info)
        for key in ('neg_category_ids', 'not_exhaustive_category_ids'):
            info[key] = list(raw_data_info['raw_img_info'][key])
        return info

    def image_file(self, image: dict) -> str:
        """Split folder and file name, see :func:`lvis_image_file`."""
        return lvis_image_file(image)

    def _read_annotations(self) -> dict:
        data = super()._read_annotations()
        check_lvis_fields(data, self.ann_file)
        return data

    def _set_metainfo(self, data: dict) -> None:
        if all('image_count' in category for category in data['categories']):
            counts = {entry['id']: entry['image_count'] for entry in data['categories']}
        else:
            counts = Counter({key: len(ids) for key, ids in self.cat_img_map.items()})
        self._metainfo['image_counts'] = [int(counts[i]) for i in self.cat_ids]
