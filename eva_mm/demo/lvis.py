"""Writes scenes as LVIS v1 annotations (lvisdataset.org; arXiv 1908.03195)."""

from typing import Any

from eva_mm.demo.catalogue import CATEGORIES
from eva_mm.demo.coco import DATE, LICENSES, URL_ROOT, file_name, info, polygon_fields
from eva_mm.demo.plan import frequency_group
from eva_mm.demo.scenes import Scene


class LvisWriter:
    """Collects scenes of one split into an LVIS v1 file.

    As in LVIS, an image lists categories verified absent (``neg_category_ids``) and categories of
    which not every instance is annotated (``not_exhaustive_category_ids``); it has a ``coco_url``
    and no ``file_name``; annotations have no ``iscrowd``.

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
        partial = {i.category + 1 for i in scene.instances if not i.listed}
        self.images.append(
            {
                'id': image_id,
                'height': height,
                'width': width,
                'coco_url': f'{URL_ROOT}/{self.split}2017/{file_name(image_id)}',
                'flickr_url': '',
                'date_captured': DATE,
                'license': 1,
                'neg_category_ids': [index + 1 for index in scene.plan.negatives],
                'not_exhaustive_category_ids': sorted(partial),
            }
        )
        for instance in scene.instances:
            if instance.listed:
                self.annotations.append(
                    {
                        'id': len(self.annotations) + 1,
                        'image_id': image_id,
                        'category_id': instance.category + 1,
                        **polygon_fields(instance),
                    }
                )

    def build(self, train: 'LvisWriter') -> dict[str, Any]:
        """The whole file as a dict ready for ``json``.

        Args:
            train: The training split's writer: LVIS counts, and hence groups, are those of the
                training annotations in every file.
        """
        return {
            'info': info(f'Demo scenes, LVIS v1 format, {self.split}'),
            'licenses': LICENSES,
            'images': self.images,
            'annotations': self.annotations,
            'categories': _categories(train.annotations),
        }


def _categories(train_annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for index, category in enumerate(CATEGORIES):
        images = [a['image_id'] for a in train_annotations if a['category_id'] == index + 1]
        rows.append(
            {
                'id': index + 1,
                'name': category.name,
                'synset': f'{category.name}.n.01',
                'synonyms': [category.name],
                'def': category.definition,
                'image_count': len(set(images)),
                'instance_count': len(images),
                'frequency': frequency_group(len(set(images))),
            }
        )
    return rows
