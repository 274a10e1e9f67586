"""EVA in stock mmdet configs: only backbone, neck and its number of levels change."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from ..test_configs import random_batch

BACKBONE = dict(
    _delete_=True,
    type='EVAViTDet',
    size='tiny',
    img_size=128,
    embed_dim=32,
    depth=2,
    num_heads=4,
    mlp_dim=64,
    window_size=4,
)
PLUG_INS = {
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': dict(type='SimpleFeaturePyramid', in_channels=32),
    'retinanet/retinanet_r50_fpn_1x_coco.py': dict(
        type='SimpleFeaturePyramid', in_channels=32, scale_factors=(2, 1, 0.5), num_outs=5
    ),
}


@pytest.mark.parametrize('base', PLUG_INS)
def test_stock_detector_trains_a_step(base, tmp_path):
    file = tmp_path / 'plugged.py'
    neck = dict(_delete_=True, **PLUG_INS[base])
    file.write_text(
        f"_base_ = 'mmdet::{base}'\n"
        "custom_imports = dict(imports=['eva_mm.detection'])\n"
        f'model = dict(backbone={BACKBONE!r}, neck={neck!r})\n'
    )
    cfg = Config.fromfile(file)
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    losses = model.train().train_step(random_batch(128, 80, bitmaps=True), wrapper)
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in losses.values())
    with torch.no_grad():
        results = model.eval().test_step(random_batch(128, 80, bitmaps=True))
    assert len(results) == 2
