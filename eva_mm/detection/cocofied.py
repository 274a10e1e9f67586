"""COCO models on LVIS annotations: LVIS files reduced to COCO's 80 classes ("cocofied").

Such a file has LVIS's fields, COCO's category ids, and LVIS's names for them; categories without
an instance are not listed (detectron2's datasets/prepare_cocofied_lvis.py). A COCO model's labels
follow COCO's 80 ids, so all of them are put back, under COCO's names.
"""

from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS, METRICS

from eva_mm.errors import InputError

from .datasets import EVALVISDataset
from .metrics import EVALVISMetric

COCO_NAMES = CocoDataset.METAINFO['classes']
# COCO numbers 91 categories and annotates 80 of them.
_NOT_ANNOTATED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
COCO_IDS = tuple(i for i in range(1, 92) if i not in _NOT_ANNOTATED)


def with_coco_categories(data: dict, path: str) -> dict:
    """Give an annotation file COCO's 80 categories, by id.

    Args:
        data: the parsed file, changed in place. Categories that it lacks count for nothing: no
            image annotates them or lists them as absent.
        path: of the file, for messages.

    Returns:
        ``data``.

    Raises:
        InputError: a category's id is none of COCO's.
    """
    listed = {category['id']: category for category in data['categories']}
    foreign = sorted(set(listed) - set(COCO_IDS))
    if foreign:
        raise InputError(
            f"annotation file {path}: category ids {foreign[:5]} are none of COCO's 80, expected "
            'LVIS annotations reduced to these (by detectron2 datasets/prepare_cocofied_lvis.py)'
        )
    data['categories'] = [
        {'frequency': 'f', **listed.get(category_id, {}), 'id': category_id, 'name': name}
        for category_id, name in zip(COCO_IDS, COCO_NAMES)
    ]
    return data


@DATASETS.register_module()
class CocofiedLVISDataset(EVALVISDataset):
    """LVIS images and annotations under COCO's 80 classes.

    Raises:
        InputError: see :func:`with_coco_categories`.
    """

    def _read_annotations(self) -> dict:
        return with_coco_categories(super()._read_annotations(), self.ann_file)


@METRICS.register_module()
class CocofiedLVISMetric(EVALVISMetric):
    """LVIS's AP over COCO's 80 classes, by LVIS's rules.

    Categories that the file lacks have no AP and do not enter the mean.

    Raises:
        InputError: see :func:`with_coco_categories`.
    """

    def _load(self, ann_file: str) -> dict:
        return with_coco_categories(super()._load(ann_file), ann_file)
