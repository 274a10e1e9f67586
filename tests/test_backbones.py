"""The plain backbone, from any OpenMMLab registry."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

import eva_mm.backbones  # noqa: F401

from .zoo.fresh import fresh

TINY = dict(
    type='EVAViT',
    size='tiny',
    img_size=64,
    patch_size=16,
    embed_dim=32,
    depth=4,
    num_heads=4,
    mlp_dim=64,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_is_found_from_the_root_and_from_a_child_registry():
    from mmdet.registry import MODELS as mmdet_models

    init_default_scope('mmdet')
    assert MODELS.get('EVAViT') is mmdet_models.get('EVAViT') is eva_mm.backbones.EVAViT


def test_maps_of_chosen_blocks():
    model = MODELS.build(dict(TINY, out_indices=(1, -1)))
    maps = model(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 32, 4, 6)] * 2
    assert not torch.allclose(maps[0], maps[1])
    assert all(m.is_contiguous() for m in maps)


def test_blocks_that_no_output_needs_do_not_learn():
    model = MODELS.build(dict(TINY, out_indices=(1,)))
    model(torch.randn(2, 3, 64, 64))[0].sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.grad is not None}


def test_final_norm_on_the_last_map_only():
    model = MODELS.build(dict(TINY, out_indices=(1, 3), out_norm=True))
    first, last = model(torch.randn(2, 3, 64, 64))
    assert torch.allclose(last.mean(dim=1), torch.zeros(2, 4, 4), atol=1e-5)
    assert not torch.allclose(first.mean(dim=1), torch.zeros(2, 4, 4), atol=1e-3)


@pytest.mark.parametrize('out_type', ['cls', 'mean'])
def test_one_feature_per_image(out_type):
    model = MODELS.build(dict(TINY, out_type=out_type))
    (feature,) = model(torch.randn(2, 3, 64, 64))
    assert feature.shape == (2, 32)
    assert torch.allclose(feature.mean(dim=1), torch.zeros(2), atol=1e-5)


def test_frozen():
    model = MODELS.build(dict(TINY, freeze=True, drop_path_rate=0.5)).train()
    assert not any(p.requires_grad for p in model.parameters())
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(image)[0], model(image)[0])


def test_pretrained_weights_through_init_cfg(tmp_path):
    source = MODELS.build(dict(TINY))
    file = tmp_path / 'eva.pt'
    torch.save(dict(model=source.state_dict()), file)
    model = MODELS.build(dict(TINY, init_cfg=dict(type='Pretrained', checkpoint=str(file))))
    assert not torch.equal(model.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    model.init_weights()
    assert torch.equal(model.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)


def test_bad_arguments():
    with pytest.raises(ValueError, match="out_type should be 'maps', 'cls' or 'mean'"):
        MODELS.build(dict(TINY, out_type='tokens'))


@pytest.mark.parametrize('kind', ['mim', 'mae', 'classifier', 'linear', 'clip', 'clip_vision'])
def test_published_files_of_every_kind_are_taken(kind, tmp_path):
    """Parts of other tasks stay aside; everything the backbone has is loaded."""
    weights = fresh(kind)
    prefix = 'visual.' if kind == 'clip' else ''
    torch.save(dict(model=weights), tmp_path / 'published.pt')
    block = weights[f'{prefix}blocks.0.mlp.fc1.weight']
    pos_embed = weights[f'{prefix}pos_embed']
    depth = 1 + max(int(k.split('.')[-4]) for k in weights if k.endswith('attn.qkv.weight'))
    kernel = weights[f'{prefix}patch_embed.proj.weight']
    model = MODELS.build(
        dict(
            TINY,
            size='large' if kind == 'mae' else 'tiny',
            qkv_bias='full' if kind == 'mae' else 'qv',
            embed_dim=block.shape[1],
            mlp_dim=block.shape[0],
            depth=depth,
            patch_size=kernel.shape[-1],
            img_size=kernel.shape[-1] * int((pos_embed.shape[1] - 1) ** 0.5),
            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'published.pt')),
        )
    )
    model.init_weights()
    state = model.state_dict()
    names = [k for k in state if not k.startswith(('norm.', 'fc_norm.', 'head.'))]
    assert len(names) > 20
    for name in names:
        assert torch.equal(state[name], weights[prefix + name].float()), name
