"""The plain backbone inside an mmpretrain config (tried with mmpretrain 1.2.0)."""

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope

import eva_mm.backbones  # noqa: F401

CLASSES = 4
CONFIG = """
custom_imports = dict(imports=['eva_mm.backbones'], allow_failed_imports=False)
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=4, mean=[0.0] * 3, std=[255.0] * 3, to_rgb=True),
    backbone=dict(
        # Its own name: mmpretrain has an EVA too, and a child registry comes before the root.
        type='EVAViT',
        size='tiny',
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=3,
        num_heads=4,
        mlp_dim=64,
        out_type='mean',
    ),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=32),
)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'eva_in_mmpretrain.py'
    path.write_text(CONFIG)
    return Config.fromfile(str(path))


def test_one_feature_per_image_in_a_tuple(config):
    """What mmpretrain's heads take, checked without mmpretrain."""
    for out_type in ('mean', 'cls'):
        backbone = MODELS.build(dict(config.model.backbone, out_type=out_type))
        features = backbone(torch.randn(2, 3, 32, 32))
        assert isinstance(features, tuple)
        assert [tuple(feature.shape) for feature in features] == [(2, 32)]


def test_classifier_of_mmpretrain_trains_and_predicts(config):
    pytest.importorskip('mmpretrain')
    from mmpretrain.registry import MODELS as mmpretrain_models
    from mmpretrain.structures import DataSample
    from mmpretrain.utils import register_all_modules

    register_all_modules()
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = mmpretrain_models.build(config.model)
        assert type(model.backbone) is eva_mm.backbones.EVAViT
        wrapper = build_optim_wrapper(model, config.optim_wrapper)
        batch = dict(
            inputs=torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8),
            data_samples=[DataSample().set_gt_label(i % CLASSES) for i in range(8)],
        )
        before = model.backbone.blocks[0].attn.qkv.weight.detach().clone()
        losses = [model.train().train_step(batch, wrapper)['loss'].item() for _ in range(30)]
        assert losses[-1] < 0.7 * losses[0]
        assert not torch.equal(model.backbone.blocks[0].attn.qkv.weight, before)
        with torch.no_grad():
            found = model.eval().test_step(batch)
    scores = torch.stack([sample.pred_score for sample in found])
    assert scores.shape == (8, CLASSES)
    torch.testing.assert_close(scores.sum(1), torch.ones(8))
