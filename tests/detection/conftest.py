"""Tiny detectors for the tests of the mmdet side."""

import copy

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import PolygonMasks
from mmengine.structures import InstanceData

from ..helpers import load_config, shrink_detector


@pytest.fixture(scope='session')
def leaf_models() -> dict:
    """Model configs of the two leaves at test size."""
    return {
        kind: shrink_detector(load_config(f'{kind}/eva_cascade')).model for kind in ('coco', 'lvis')
    }


@pytest.fixture
def build(leaf_models):
    """``build(kind, **options)``: a tiny detector with random weights."""

    def _build(kind: str = 'coco', **options) -> torch.nn.Module:
        torch.manual_seed(0)
        cfg = copy.deepcopy(leaf_models[kind])
        cfg.merge_from_dict(options) if hasattr(cfg, 'merge_from_dict') else cfg.update(options)
        return MODELS.build(cfg)

    return _build


def square(x: float, y: float, side: float) -> np.ndarray:
    """A square as one flat polygon."""
    return np.array([x, y, x + side, y, x + side, y + side, x, y + side], dtype=np.float64)


@pytest.fixture
def sample() -> DetDataSample:
    """One image of 96 x 112 pixels with three square instances."""
    corners = [(10.0, 12.0, 40.0), (50.0, 40.0, 30.0), (60.0, 8.0, 20.0)]
    boxes = torch.tensor([[x, y, x + s, y + s] for x, y, s in corners])
    masks = PolygonMasks([[square(*c)] for c in corners], 96, 112)
    result = DetDataSample(
        metainfo=dict(
            img_shape=(96, 112), ori_shape=(48, 56), scale_factor=(2.0, 2.0), pad_shape=(128, 128)
        )
    )
    result.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2, 4]), masks=masks)
    return result
