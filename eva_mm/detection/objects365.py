"""Objects365 v2 in the layout of mmdet's ``objects365v2_detection.py``."""

import os.path as osp

from mmdet.datasets.objects365 import objv2_ignore_list
from mmdet.registry import DATASETS

from .datasets import EVACocoDataset


@DATASETS.register_module()
class EVAObjects365Dataset(EVACocoDataset):
    """Objects365 v2: 365 classes, boxes only.

    Annotations call an image ``images/v1/patch8/objects365_v1_00420917.jpg``; it is looked up as
    ``data_prefix['img']/patch8/objects365_v1_00420917.jpg``. Training leaves out the images that
    are annotated but were never released (mmdet's list). Labels follow the sorted category ids,
    as everywhere here. All else: see :class:`EVACocoDataset`.
    """

    def image_file(self, image: dict) -> str:
        """Patch folder and file name."""
        return osp.join(*super().image_file(image).split('/')[-2:])

    def _read_annotations(self) -> dict:
        data = super()._read_annotations()
        if self.test_mode:  # a missing image would change the AP
            return data
        absent = {
            image['id'] for image in data['images'] if self.image_file(image) in objv2_ignore_list
        }
        data['images'] = [image for image in data['images'] if image['id'] not in absent]
        data['annotations'] = [
            entry for entry in data['annotations'] if entry['image_id'] not in absent
        ]
        return data
