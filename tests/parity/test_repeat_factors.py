"""Repeat factors against those of the authors' sampler."""

import json

import pytest

from eva_mm.detection.datasets import EVALVISDataset
from eva_mm.detection.samplers import InfiniteRepeatFactorSampler
from tests.parity.reference import DEFAULT_DIR, reference_files

ANNOTATIONS = DEFAULT_DIR.parent / 'data' / 'annotations'


@pytest.mark.parametrize('file', reference_files('repeat_factors_', '.json'))
def test_repeat_factors_per_image(file):
    reference = json.loads(file.read_text())
    ann_file = ANNOTATIONS.parent / reference['source']
    if not ann_file.exists():
        pytest.skip(f'{ann_file} is absent')
    dataset = EVALVISDataset(
        ann_file=str(ann_file),
        data_prefix=dict(img=''),
        filter_cfg=dict(filter_empty_gt=False),
    )
    for threshold, expected in reference['repeat_factors_by_threshold'].items():
        sampler = InfiniteRepeatFactorSampler(dataset, repeat_thr=float(threshold), seed=0)
        found = {
            str(dataset.get_data_info(i)['img_id']): factor.item()
            for i, factor in enumerate(sampler.repeat_factors)
        }
        found = {image_id: found[image_id] for image_id in expected}
        assert found == pytest.approx(expected, rel=1e-6)
