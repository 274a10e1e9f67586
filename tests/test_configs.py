"""Every config: at its real size on the meta device, and small for a training and a test step."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import eva_mm

from .helpers import load_config, shrink_detector

CONFIGS = [name for name in eva_mm.list_configs() if not name.startswith('_base_')]
DETECTION = [
    name
    for name in CONFIGS
    if name.split('/')[0] in ('coco', 'lvis', 'objects365')
    or name in ('demo/lvis', 'demo/coco_overfit', 'demo/finetune')
]
# Built at their real size, and stepped, in tests of their own.
SEGMENTATION = [
    name
    for name in CONFIGS
    if name.split('/')[0] in ('ade20k', 'coco_stuff') or name == 'demo/ade20k'
]
VIDEO = [name for name in CONFIGS if 'kinetics' in name]  # see tests/video
# Tasks on mmengine alone.
OTHERS = [name for name in CONFIGS if name not in DETECTION + SEGMENTATION + VIDEO]
LEAF_TYPES = {
    'demo/lvis': 'lvis/eva_cascade',
    'demo/coco_overfit': 'coco/eva_cascade',
    'demo/pretrain': 'pretrain/eva_g_merged30m',
    'demo/ade20k': 'ade20k/eva_mask2former',
}


def types_of(node, path='') -> dict[str, str]:
    """Every ``type`` in a config, by its place."""
    found = {}
    if isinstance(node, dict):
        if isinstance(node.get('type'), str):
            found[path] = node['type']
        for key, value in node.items():
            found.update(types_of(value, f'{path}.{key}'))
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            found.update(types_of(value, f'{path}[{index}]'))
    return found


def test_there_are_configs():
    leaves = {'lvis/eva_cascade', 'coco/eva_cascade', 'objects365/eva_cascade', 'demo/lvis'}
    assert leaves <= set(CONFIGS)


@pytest.mark.parametrize('name', CONFIGS)
def test_has_a_docstring_with_command_and_source(name):
    text = Path(eva_mm.config_path(name)).read_text()
    assert text.startswith('"""')
    header = text.split('"""')[1]
    assert 'Command:' in header
    if not name.startswith('demo/'):
        assert 'Published:' in header
        assert 'Source:' in header


@pytest.mark.parametrize('name', OTHERS)
def test_real_size_builds_on_mmengine_alone(name):
    from mmengine.registry import MODELS

    cfg = load_config(name, scope='mmengine')
    assert cfg.default_scope == 'mmengine'
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize('name', DETECTION)
def test_real_size_builds_on_the_meta_device(name):
    from mmdet.registry import MODELS

    cfg = load_config(name)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    parameters = sum(p.numel() for p in model.parameters())
    if cfg.model.backbone.size == 'giant':
        # The published checkpoints are called 1.1 B.
        assert 1.06e9 < parameters < 1.10e9


@pytest.mark.parametrize(('small', 'leaf'), LEAF_TYPES.items())
def test_demo_has_the_types_of_its_leaf(small, leaf):
    small_types, leaf_types = types_of(load_config(small)), types_of(load_config(leaf))
    assert small_types == leaf_types


def random_batch(size: int, num_classes: int, bitmaps: bool) -> dict:
    """Two images of different sizes with two instances each, as a data loader gives them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks, PolygonMasks
    from mmengine.structures import InstanceData

    torch.manual_seed(0)
    inputs, samples = [], []
    for h, w in ((size, size - 24), (size - 40, size)):
        boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [30.0, 20.0, 62.0, 80.0]])
        corners = [[x0, y0, x1, y0, x1, y1, x0, y1] for x0, y0, x1, y1 in boxes.tolist()]
        masks = PolygonMasks([[np.array(c)] for c in corners], h, w)
        sample = DetDataSample(
            metainfo=dict(img_shape=(h, w), ori_shape=(h // 2, w // 2), scale_factor=(2.0, 2.0))
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes,
            labels=torch.tensor([0, num_classes - 1]),
            masks=BitmapMasks(masks.to_ndarray().astype(np.uint8), h, w) if bitmaps else masks,
        )
        inputs.append(torch.randint(0, 256, (3, h, w), dtype=torch.uint8))
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


@pytest.mark.parametrize('name', DETECTION)
def test_small_detector_takes_a_training_and_a_test_step(name):
    from mmdet.registry import MODELS
    from mmengine.optim import build_optim_wrapper

    cfg = shrink_detector(load_config(name))
    # Soft-NMS on random scores keeps thousands of boxes.
    cfg.model.test_cfg.rpn.max_per_img = 50
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = random_batch(128, 5, bitmaps='coco' in name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = model.train().train_step(copy.deepcopy(batch), wrapper)
    assert torch.isfinite(losses['loss'])
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert 'neck.simfp_2.0.weight' in moved
    assert 'backbone.blocks.0.attn.qkv.weight' in moved
    frozen = cfg.model.backbone.freeze_patch_embed
    assert ('backbone.patch_embed.proj.weight' in moved) is not frozen

    with torch.no_grad():
        results = model.eval().test_step(copy.deepcopy(batch))
    cap = cfg.model.test_cfg.rcnn.max_per_img
    for sample in results:
        found = sample.pred_instances
        if cfg.model.roi_head.mask_head is None:
            assert 'masks' not in found
        else:
            assert found.masks.shape == (len(found), *sample.ori_shape)
        assert cap < 0 or len(found) <= cap


def test_large_takes_weights_of_patches_of_14_px(tmp_path):
    from mmdet.registry import MODELS

    from eva_mm.resize import resize_patch_kernel
    from eva_mm.vit import EVAVisionTransformer

    sizes = dict(embed_dim=32, depth=4, num_heads=4, mlp_dim=64)
    pretrained = EVAVisionTransformer('large', img_size=224, pooling=None, **sizes)
    weights = {name: torch.randn_like(value) for name, value in pretrained.state_dict().items()}
    decoder = dict(
        mask_token=torch.zeros(1, 1, 16), **{'decoder_embed.weight': torch.zeros(16, 32)}
    )
    torch.save(dict(model={**weights, **decoder}), tmp_path / 'eva_l.pt')
    leaf = load_config('coco/eva_l_cascade')
    assert leaf.model.backbone.init_cfg.checkpoint == 'eva://eva_l_psz14'
    cfg = shrink_detector(leaf)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'eva_l.pt'))
    model = MODELS.build(cfg.model)
    model.init_weights()
    own = model.backbone.state_dict()
    kernel = resize_patch_kernel(weights['patch_embed.proj.weight'], (16, 16))
    torch.testing.assert_close(own['patch_embed.proj.weight'], kernel)
    assert own['pos_embed'].shape == (1, 1 + 14 * 14, 32)
    torch.testing.assert_close(own['pos_embed'][:, 0], weights['pos_embed'][:, 0])
    for name in ('blocks.3.attn.qkv.bias', 'blocks.0.attn.qkv.weight', 'blocks.2.norm1.weight'):
        torch.testing.assert_close(own[name], weights[name])
