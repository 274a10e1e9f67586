"""timm's EVA and EVA-L against ours: the same names, and the same outputs from the same weights."""

import pytest
import timm
import torch

from eva_mm.backbones import EVAViT
from eva_mm.errors import InputError
from eva_mm.vit import EVAVisionTransformer
from eva_mm.zoo.timm_names import from_timm, is_timm, to_timm

from ..helpers import relative_error

TINY = dict(embed_dim=32, depth=3, num_heads=4)
MLP = 72  # not a multiple of the width, as 6144 is none of 1408
IMAGES = torch.randn(2, 3, 84, 84, generator=torch.Generator().manual_seed(0))
# timm's name -> ours: size, image side, classes, pooling.
MODELS = {
    'eva_giant_patch14_224': ('giant', 224, 1000, 'mean'),
    'eva_giant_patch14_336': ('giant', 336, 1000, 'mean'),
    'eva_giant_patch14_560': ('giant', 560, 1000, 'mean'),
    'eva_giant_patch14_clip_224': ('giant', 224, 1024, 'cls'),
    'eva_large_patch14_196': ('large', 196, 1000, 'mean'),
    'eva_large_patch14_336': ('large', 336, 1000, 'mean'),
}


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, biases, norms and tokens too: each one shows in the output then."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        norm_weight = name.endswith('weight') and parameter.ndim == 1
        parameter.data = 1 + 0.3 * noise if norm_weight else 0.2 * noise
    return module.eval()


def tiny_timm(name: str, img_size: int, **kwargs) -> torch.nn.Module:
    kwargs = dict(num_classes=5, mlp_ratio=MLP / TINY['embed_dim']) | kwargs
    return randomise(timm.create_model(name, img_size=img_size, **TINY, **kwargs))


def tiny_ours(name: str, img_size: int, **kwargs) -> EVAVisionTransformer:
    size, _, _, pooling = MODELS[name]
    kwargs = dict(num_classes=5, mlp_dim=MLP, pooling=pooling) | kwargs
    return randomise(EVAVisionTransformer(size, img_size=img_size, **TINY, **kwargs))


def shapes(module: torch.nn.Module) -> dict[str, tuple]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.mark.parametrize('name', MODELS)
def test_names_and_shapes_at_full_size(name):
    size, img_size, classes, pooling = MODELS[name]
    with torch.device('meta'):
        theirs = timm.create_model(name)
        ours = EVAVisionTransformer(size, img_size=img_size, num_classes=classes, pooling=pooling)
    assert shapes(theirs) == shapes(ours)


@pytest.mark.parametrize('img_size', [56, 84])
@pytest.mark.parametrize('name', MODELS)
@torch.no_grad()
def test_timms_weights_give_timms_outputs(name, img_size):
    theirs, image = tiny_timm(name, img_size), IMAGES[..., :img_size, :img_size]
    ours = EVAVisionTransformer(
        MODELS[name][0],
        img_size=img_size,
        num_classes=5,
        pooling=MODELS[name][3],
        mlp_dim=MLP,
        **TINY,
    ).eval()
    ours.load_state_dict(from_timm(theirs.state_dict()))

    tokens = theirs.forward_features(image)
    assert relative_error(ours.forward_features(image), tokens) < 1e-5
    pooled = theirs.forward_head(tokens, pre_logits=True)
    assert relative_error(ours.pool(ours.forward_features(image)), pooled) < 1e-5
    assert relative_error(ours(image), theirs(image)) < 1e-5


@pytest.mark.parametrize('name', MODELS)
@torch.no_grad()
def test_our_weights_give_our_outputs_in_timm(name):
    ours, kind = tiny_ours(name, 56), 'clip_vision' if 'clip' in name else 'classifier'
    theirs = timm.create_model(
        name, img_size=56, num_classes=5, mlp_ratio=MLP / TINY['embed_dim'], **TINY
    ).eval()
    theirs.load_state_dict(to_timm(ours.state_dict(), kind), strict=True)
    image = IMAGES[..., :56, :56]
    assert relative_error(theirs.forward_features(image), ours.forward_features(image)) < 1e-5
    assert relative_error(theirs(image), ours(image)) < 1e-5


@pytest.mark.parametrize('name', ['eva_giant_patch14_224', 'eva_large_patch14_196'])
@torch.no_grad()
def test_backbone_takes_timms_file(name, tmp_path):
    theirs, image = tiny_timm(name, 56), IMAGES[..., :56, :56]
    torch.save(theirs.state_dict(), tmp_path / 'timm.pt')
    options = dict(size=MODELS[name][0], img_size=56, mlp_dim=MLP, **TINY)
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'timm.pt'))

    dense = EVAViT(**options, out_indices=(0, 2), init_cfg=init_cfg).eval()
    dense.init_weights()
    expected = theirs.forward_intermediates(image, indices=[0, 2], intermediates_only=True)
    for ours, map_ in zip(dense(image), expected, strict=True):
        assert relative_error(ours, map_) < 1e-5

    pooled = EVAViT(**options, out_type='mean', init_cfg=init_cfg).eval()
    pooled.init_weights()
    expected = theirs.forward_head(theirs.forward_features(image), pre_logits=True)
    assert relative_error(pooled(image)[0], expected) < 1e-5


@pytest.mark.parametrize(
    ('kind', 'name'), [('mim', 'eva_giant_patch14_224'), ('mae', 'eva_large_patch14_196')]
)
@torch.no_grad()
def test_pretrained_encoder_goes_into_timm(kind, name):
    """With its final norm, and without what pretraining has beside it."""
    encoder = tiny_ours(name, 56, num_classes=0, pooling='cls')
    beside = {
        'mim': ['mask_token', 'lm_head.weight', 'lm_head.bias'],
        'mae': ['mask_token', 'decoder_pos_embed', 'decoder_embed.weight', 'decoder_norm.bias'],
    }[kind]
    published = {**encoder.state_dict(), **{key: torch.ones(1) for key in beside}}
    theirs = tiny_timm(name, 56, num_classes=0, global_pool='token')
    theirs.load_state_dict(to_timm(published, kind), strict=True)
    image = IMAGES[..., :56, :56]
    assert relative_error(theirs.forward_features(image), encoder.forward_features(image)) < 1e-5


@torch.no_grad()
def test_linear_probe_is_folded():
    encoder = tiny_ours('eva_giant_patch14_clip_224', 56, num_classes=0)
    head = torch.nn.Sequential(
        torch.nn.BatchNorm1d(32, affine=False, eps=1e-6), torch.nn.Linear(32, 7)
    ).eval()
    head[0].running_mean.normal_()
    head[0].running_var.uniform_(1e-6, 2)
    published = encoder.state_dict() | {f'head.{k}': v for k, v in head.state_dict().items()}
    theirs = tiny_timm('eva_giant_patch14_224', 56, num_classes=7, global_pool='token')
    theirs.load_state_dict(to_timm(published, 'linear'), strict=True)
    image = IMAGES[..., :56, :56]
    assert relative_error(theirs(image), head(encoder(image))) < 1e-5


def test_kinds_that_timm_lacks():
    with pytest.raises(InputError, match="kind 'detector', expected one of .*'classifier'"):
        to_timm({}, 'detector')


def test_bare_models_need_no_renaming():
    state = tiny_timm('eva_giant_patch14_224', 56).state_dict()
    assert not is_timm(state)
    assert from_timm(state).keys() == state.keys() == to_timm(state, 'classifier').keys()
