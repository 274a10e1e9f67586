"""Writes scenes as COCO instance annotations (cocodataset.org, 'data format')."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from eva_mm.demo.catalogue import CATEGORIES
from eva_mm.demo.scenes import Instance, Scene

DATE = '2022-11-14 00:00:00'
LICENSES = [{'id': 1, 'name': 'Public domain', 'url': ''}]
URL_ROOT = 'http://images.cocodataset.org'


def info(description: str) -> dict[str, Any]:
    """The ``info`` block; without the time of writing, so that the file is reproducible."""
    return {
        'description': description,
        'url': '',
        'version': '1.0',
        'year': 2022,
        'contributor': 'eva_mm',
        'date_created': DATE,
    }


def file_name(image_id: int) -> str:
    """COCO's file name of an image: twelve digits."""
    return f'{image_id:012d}.jpg'


def polygon_fields(instance: Instance) -> dict[str, Any]:
    """``segmentation`` (flat x, y lists), ``area`` (px^2) and ``bbox`` (x, y, w, h in px)."""
    points = np.concatenate(instance.parts)
    low, high = points.min(0), points.max(0)
    return {
        'segmentation': [part.ravel().tolist() for part in instance.parts],
        'area': sum(_polygon_area(part) for part in instance.parts),
        'bbox': [float(value) for value in (*low, *(high - low))],
    }


def _polygon_area(points: np.ndarray) -> float:
    # No BLAS: coordinates are multiples of 1/8, so that this sum is exact on any machine.
    x, y = points.T
    return float(abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2)


def _mask_fields(mask: np.ndarray) -> dict[str, Any]:
    """The same fields for a crowd region: uncompressed run lengths, column by column."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(np.diff(flat)) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    if flat[0]:  # the first run is background by definition
        counts.insert(0, 0)
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()), int(rows.min())
    return {
        'segmentation': {'counts': counts, 'size': list(mask.shape)},
        'area': float(mask.sum()),
        'bbox': [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
    }


class CocoWriter:
    """Collects scenes of one split into a COCO instance file.

    Every visible object is annotated, also those that LVIS leaves out.

    Args:
        split: ``'train'`` or ``'val'``.
    """

    def __init__(self, split: str) -> None:
        self.split = split
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, image_id: int, scene: Scene) -> None:
        """Adds one scene under the id its image file is named by."""
        height, width = scene.image.shape[:2]
        name = file_name(image_id)
        self.images.append(
            {
                'id': image_id,
                'file_name': name,
                'height': height,
                'width': width,
                'coco_url': f'{URL_ROOT}/{self.split}2017/{name}',
                'flickr_url': '',
                'date_captured': DATE,
                'license': 1,
            }
        )
        for index, instance in enumerate(scene.instances):
            fields = (
                _mask_fields(scene.owner == index) if instance.crowd else polygon_fields(instance)
            )
            self.annotations.append(
                {
                    'id': len(self.annotations) + 1,
                    'image_id': image_id,
                    'category_id': instance.category + 1,
                    'iscrowd': int(instance.crowd),
                    **fields,
                }
            )

    def build(self) -> dict[str, Any]:
        """The whole file as a dict ready for ``json``."""
        return {
            'info': info(f'Demo scenes, COCO format, {self.split}'),
            'licenses': LICENSES,
            'images': self.images,
            'annotations': self.annotations,
            'categories': list(_categories()),
        }


def _categories() -> Iterable[dict[str, Any]]:
    for index, category in enumerate(CATEGORIES):
        yield {'id': index + 1, 'name': category.name, 'supercategory': category.shape}
