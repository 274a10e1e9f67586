"""COCO and LVIS data lists as the published detector reads them.

Source: github.com/baaivision/EVA, EVA-01/det/detectron2/data/{build.py,datasets/coco.py,
datasets/lvis.py}. What differs from mmdet's own data sets:

* training drops crowd regions, then images without any instance; nothing is dropped for being
  small (large-scale jitter drops what vanishes);
* class names come from the annotation file, labels follow the sorted category ids;
* LVIS is read without the ``lvis`` package, version 1 and 0.5 alike.
"""

import json
import logging
import os.path as osp
from collections import Counter, defaultdict

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.fileio import get_text
from mmengine.logging import print_log


def load_annotation_file(path: str, backend_args: dict | None = None) -> dict:
    """Reads a COCO or LVIS annotation file.

    Args:
        path: JSON file with ``images``, ``categories`` and (unless a test set) ``annotations``.
        backend_args: of mmengine's file backend.

    Returns:
        The parsed file; ``annotations`` is an empty list when absent.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is empty, no JSON, or lacks a list; the message names file and key.
    """
    try:
        text = get_text(path, backend_args=backend_args)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'annotation file not found: {path} (check data_root and ann_file)'
        ) from error
    if not text.strip():
        raise ValueError(f'annotation file is empty: {path}')
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'annotation file is not valid JSON: {path}: {error}') from error
    if not isinstance(data, dict):
        raise ValueError(
            f'annotation file {path}: expected an object with images and categories, '
            f'found a {type(data).__name__} (a results file?)'
        )
    data.setdefault('annotations', [])
    for key in ('images', 'categories', 'annotations'):
        if not isinstance(data.get(key), list):
            raise ValueError(f'annotation file {path}: expected a list under {key!r}, found none')
    return data


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
                    raise ValueError(
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


@DATASETS.register_module()
class EVACocoDataset(CocoDataset):
    """COCO-format instances, chosen and ordered as in the published training.

    Arguments are those of mmdet's ``CocoDataset``. Without ``metainfo`` the classes are those
    of the annotation file. A training set (``test_mode=False``) holds no crowd regions, and no
    image without instances unless ``filter_cfg=dict(filter_empty_gt=False)``; a test set keeps
    every image, and crowds as instances with ``ignore_flag`` 1.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_annotation_file`; also for classes that
            the file lacks and for annotations of unknown images.
    """

    # Empty on purpose: CocoDataset's 80 names would mislabel any other COCO-format file.
    METAINFO: dict = {}

    def load_data_list(self) -> list[dict]:
        """Reads ``ann_file``; one record per image, in ascending image id."""
        data = self._read_annotations()
        self._set_categories(data['categories'])
        images = {image['id']: image for image in data['images']}
        annotations = self._annotations_by_image(data['annotations'], images)
        self.cat_img_map = defaultdict(list)
        for image_id, entries in annotations.items():
            for category_id in {entry['category_id'] for entry in entries}:
                self.cat_img_map[category_id].append(image_id)
        self._set_metainfo(data)
        return [
            self.parse_data_info(
                dict(
                    raw_img_info=dict(images[image_id], img_id=image_id),
                    raw_ann_info=annotations.get(image_id, []),
                )
            )
            for image_id in sorted(images)
        ]

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
        parsed = (self._parse_instance(entry) for entry in raw_data_info['raw_ann_info'])
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
        if self.data_list and not kept:
            raise ValueError(
                f'{self.ann_file}: none of {len(self.data_list)} images is left for training '
                f'(an image needs an instance that is no crowd, of one of '
                f'{len(self.cat_ids)} classes)'
            )
        return kept

    def prepare_data(self, idx: int):
        """Runs the pipeline; an image that cannot be read is named together with its source."""
        try:
            return super().prepare_data(idx)
        except OSError as error:
            path = self.get_data_info(idx)['img_path']
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
            raise kind(
                f'cannot read image {path}, listed in {self.ann_file} (check data_prefix): {error}'
            ) from error

    def _read_annotations(self) -> dict:
        return load_annotation_file(self.ann_file, self.backend_args)

    def _set_categories(self, categories: list[dict]) -> None:
        """Fixes ``cat_ids``, ``cat2label`` and the class names, by ascending category id."""
        names = {category['id']: category['name'] for category in categories}
        wanted = self._metainfo.get('classes')
        if wanted is not None:
            missing = sorted(set(wanted) - set(names.values()))
            if missing:
                raise ValueError(
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

    def _set_metainfo(self, data: dict) -> None:
        """Hook for further meta information; called when the categories are known."""

    def _annotations_by_image(self, annotations: list, images: dict) -> dict[int, list[dict]]:
        grouped, seen = defaultdict(list), set()
        for entry in annotations:
            if entry['image_id'] not in images:
                raise ValueError(
                    f'{self.ann_file}: annotation id={entry.get("id")} belongs to image '
                    f'{entry["image_id"]}, which is not listed under images'
                )
            seen.add(entry['id'])
            grouped[entry['image_id']].append(entry)
        if len(seen) != len(annotations):
            raise ValueError(f'{self.ann_file}: annotation ids are not unique')
        return grouped

    def _parse_instance(self, entry: dict) -> dict | None:
        crowd = bool(entry.get('iscrowd', 0))
        if entry.get('ignore') or entry['category_id'] not in self.cat2label:
            return None
        if crowd and not self.test_mode:
            return None
        x, y, width, height = entry['bbox']
        instance = dict(
            bbox=[x, y, x + width, y + height],
            bbox_label=self.cat2label[entry['category_id']],
            ignore_flag=int(crowd),
            ann_id=entry['id'],
        )
        mask = entry.get('segmentation')
        if isinstance(mask, list) and mask:
            # A polygon needs three points; an instance without any is no instance in detectron2.
            mask = [part for part in mask if len(part) % 2 == 0 and len(part) >= 6]
            if not mask:
                return None
        if mask:
            instance['mask'] = mask
        return instance


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
