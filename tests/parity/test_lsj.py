"""Large-scale jitter against the authors' augmentation, with the random numbers given."""

import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import LoadAnnotations, RandomFlip
from mmdet.registry import TRANSFORMS
from mmengine.registry import init_default_scope

from eva_mm.detection.datasets import EVACocoDataset
from eva_mm.detection.transforms import LargeScaleJitter
from tests.parity.reference import DEFAULT_DIR, reference_files

COCO4 = DEFAULT_DIR.parent / 'data' / 'coco4'


def jittered(sample: dict) -> dict:
    """Runs the real pipeline up to packing on one reference sample."""
    init_default_scope('mmdet')
    dataset = EVACocoDataset(
        ann_file=str(COCO4 / 'instances.json'), data_prefix=dict(img=str(COCO4 / 'images'))
    )
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    results = next(info for info in infos if info['img_path'].endswith(sample['file_name']))
    results['gt_instances_ids'] = np.array([i['ann_id'] for i in results['instances']])
    results = LoadImageFromFile(imdecode_backend='pillow')(results)
    results = LoadAnnotations(with_bbox=True, with_mask=True, poly2mask=False)(results)
    results = RandomFlip(prob=float(sample['flip']))(results)
    size = (sample['size'], sample['size'])
    jitter = TRANSFORMS.build(dict(type='LargeScaleJitter', scale=size))
    assert isinstance(jitter, LargeScaleJitter)
    return jitter.apply(results, sample['scale'], sample['crop_fraction'])


@pytest.mark.parametrize('file', reference_files('lsj_'))
def test_image_boxes_and_masks(file):
    if not COCO4.exists():
        pytest.skip(f'{COCO4} is absent')
    samples = torch.load(file, weights_only=True)['samples']
    assert samples
    for sample in samples:
        results = jittered(sample)
        image = results['img'][..., ::-1].astype(int)  # BGR to RGB
        assert image.shape == tuple(sample['image'].shape)
        assert np.abs(image - sample['image'].numpy()).max() <= 1
        assert results['gt_instances_ids'].tolist() == sample['annotation_ids'].tolist()
        boxes = results['gt_bboxes'].tensor
        torch.testing.assert_close(boxes, sample['boxes'], atol=0.01, rtol=0)
        areas = torch.from_numpy(results['gt_masks'].areas).float()
        torch.testing.assert_close(areas, sample['polygon_areas'], atol=0.01, rtol=1e-5)
        masks = results['gt_masks'].to_ndarray().astype(bool)
        differs = (masks != sample['masks'].numpy()).mean(axis=(1, 2))
        assert differs.max() <= 0.005
