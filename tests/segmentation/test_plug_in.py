"""EVA in stock mmseg configs: the examples of the documentation, small, learn and predict."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from eva_mm import compat

from ..helpers import ROOT
from ..test_docs import code_blocks

EXAMPLES = [
    code
    for language, code in code_blocks((ROOT / 'docs/plug_in.md').read_text())
    if language == 'python' and code.startswith("_base_ = 'mmseg::")
]
SIDE = 64
WIDTH = 48


def shrink(node) -> None:
    """Widths of a base model become small ones, in place; no type changes."""
    for key, value in node.items():
        if isinstance(value, dict):
            shrink(value)
        elif key in ('in_channels', 'embed_dims') or (key, value) == ('out_channels', 768):
            node[key] = [WIDTH] * len(value) if isinstance(value, (list, tuple)) else WIDTH
        elif key == 'channels':
            node[key] = WIDTH


def batch(sizes):
    """Pictures, the left half of class 3 and blue, the right one of class 7 and bright."""
    inputs, samples = [], []
    for h, w in sizes:
        image = torch.full((3, h, w), 20, dtype=torch.uint8)
        image[0, :, : w // 2], image[:, :, w // 2 :] = 200, 240
        label = torch.full((1, h, w), 7)
        label[..., : w // 2] = 3
        sample = SegDataSample(metainfo=dict(img_shape=(h, w), ori_shape=(h, w)))
        sample.gt_sem_seg = PixelData(data=label)
        inputs.append(image)
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def test_the_page_has_examples():
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize('index', range(len(EXAMPLES)))
def test_stock_segmentor_learns(index, tmp_path):
    compat.prepare()
    path, base = tmp_path / 'example.py', tmp_path / 'base.py'
    path.write_text(EXAMPLES[index])
    base.write_text(EXAMPLES[index].splitlines()[0])
    cfg, stock = Config.fromfile(str(path)), Config.fromfile(str(base))
    assert {k for k in cfg.model if cfg.model[k] != stock.model.get(k)} <= {
        'pretrained', 'data_preprocessor', 'backbone', 'decode_head', 'auxiliary_head',
    }  # fmt: skip
    assert cfg.model.decode_head.type == stock.model.decode_head.type
    assert cfg.model.backbone.type in ('EVAViTAdapter', 'EVAViT')
    for key in ('decode_head', 'auxiliary_head', 'neck'):
        if cfg.model.get(key):
            shrink(cfg.model[key])
    sizes = dict(embed_dim=WIDTH, depth=12, num_heads=4, mlp_dim=2 * WIDTH)
    cfg.model.backbone.update(size='tiny', img_size=SIDE, **sizes)
    if cfg.model.backbone.type == 'EVAViTAdapter':
        cfg.model.backbone.update(stem_channels=8, deform_num_heads=4, depth=4)
    if 'num_heads' in cfg.model.decode_head:
        cfg.model.decode_head.num_heads = 4
    cfg.model.data_preprocessor.size = (SIDE, SIDE)
    if 'size' in cfg.model.data_preprocessor.test_cfg:
        cfg.model.data_preprocessor.test_cfg.size = (SIDE, SIDE)
        cfg.model.test_cfg.update(crop_size=(SIDE, SIDE), stride=(32, 32))
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    optimizer = dict(type='AdamW', lr=3e-3)
    wrapper = build_optim_wrapper(model, dict(type='OptimWrapper', optimizer=optimizer))
    before = model.backbone.patch_embed.proj.weight.detach().clone()
    losses = [
        float(model.train().train_step(batch([(SIDE, SIDE), (50, SIDE)]), wrapper)['loss'].detach())
        for _ in range(30)
    ]
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(model.backbone.patch_embed.proj.weight, before)
    with torch.no_grad():
        (result,) = model.eval().test_step(batch([(40, 72)]))
    found = result.pred_sem_seg.data[0]
    assert found.shape == (40, 72)
    assert set(found.unique().tolist()) <= {3, 7}
