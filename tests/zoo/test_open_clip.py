"""EVA-CLIP in open_clip against the published names and our image tower."""

import functools

import open_clip
import pytest
import timm
import torch

from eva_mm.backbones import EVAViT
from eva_mm.vit import EVAVisionTransformer
from eva_mm.zoo.timm_names import OPEN_CLIP_MODEL, from_timm, image_tower, is_timm, to_timm

from ..helpers import relative_error
from .test_timm import IMAGES, MLP, TINY, randomise, shapes

IMAGES = IMAGES[..., :56, :56]
OURS = dict(img_size=56, mlp_dim=MLP, pooling='cls', num_classes=16, **TINY)


@pytest.fixture
def tiny_clip(monkeypatch) -> torch.nn.Module:
    """open_clip's own EVA-CLIP, built as it builds it, but small and random."""
    shrunk = functools.partial(
        timm.create_model, img_size=56, mlp_ratio=MLP / TINY['embed_dim'], **TINY
    )
    monkeypatch.setattr(open_clip.timm_model.timm, 'create_model', shrunk)
    config = open_clip.get_model_config(OPEN_CLIP_MODEL) | dict(embed_dim=16)
    config['text_cfg'].update(context_length=8, vocab_size=50, width=24, heads=2, layers=2)
    del config['custom_text']
    return randomise(open_clip.CustomTextCLIP(**config))


def published_names(clip: torch.nn.Module) -> set[str]:
    """EVA-01/clip/eva_model.py: `visual`, `text`, and the temperature inside `text`."""
    tower = EVAVisionTransformer(**OURS)
    text = [f'text.{name}' for name in clip.text.state_dict()]
    return {f'visual.{name}' for name in tower.state_dict()} | {'text.logit_scale', *text}


def test_full_size():
    config = open_clip.get_model_config(OPEN_CLIP_MODEL)
    del config['custom_text']
    with torch.device('meta'):
        theirs = open_clip.CustomTextCLIP(**config)
        ours = EVAVisionTransformer('giant', pooling='cls', num_classes=1024)
    tower = {k: tuple(v.shape) for k, v in image_tower(theirs.state_dict()).items()}
    assert tower == shapes(ours)
    # As the published file holds.
    assert sum(p.numel() for p in theirs.parameters()) == 1_136_435_841


@torch.no_grad()
def test_image_tower_out_of_open_clip(tiny_clip):
    expected = tiny_clip.encode_image(IMAGES)
    states = {
        'whole': tiny_clip.state_dict(),
        'tower': {k: v for k, v in tiny_clip.state_dict().items() if k.startswith('visual.')},
        'visual': tiny_clip.visual.state_dict(),
        'trunk': tiny_clip.visual.trunk.state_dict(),
    }
    for name, state in states.items():
        assert is_timm(state) == (name != 'trunk')
        hooked, renamed = EVAVisionTransformer(**OURS).eval(), EVAVisionTransformer(**OURS).eval()
        hooked.load_state_dict(state)
        renamed.load_state_dict(image_tower(state))
        assert relative_error(hooked(IMAGES), expected) < 1e-5, name
        assert torch.equal(renamed(IMAGES), hooked(IMAGES)), name
    tokens = tiny_clip.visual.trunk.forward_features(IMAGES)
    assert relative_error(hooked.forward_features(IMAGES), tokens) < 1e-5


@torch.no_grad()
def test_published_names_into_open_clip(tiny_clip):
    published = from_timm(tiny_clip.state_dict())
    assert published.keys() == published_names(tiny_clip)
    assert not is_timm(published)
    ours = EVAVisionTransformer(**OURS)
    ours = randomise(ours)
    published.update({f'visual.{name}': value for name, value in ours.state_dict().items()})
    published['text.logit_scale'] = torch.tensor(3.25)
    text = torch.randint(1, 50, (2, 8))
    expected_text = tiny_clip.encode_text(text)

    randomise(tiny_clip).load_state_dict(to_timm(published, 'clip'), strict=True)
    assert relative_error(tiny_clip.encode_image(IMAGES), ours(IMAGES)) < 1e-5
    assert torch.equal(tiny_clip.encode_text(text), expected_text)
    assert tiny_clip.logit_scale == 3.25


def test_there_and_back(tiny_clip):
    state = tiny_clip.state_dict()
    back = to_timm(from_timm(state), 'clip')
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)
    assert to_timm(state, 'clip').keys() == state.keys()  # timm's already
    published = from_timm(state)
    assert from_timm(published).keys() == published.keys()  # published already


def test_published_tower_loads_from_the_whole_file(tiny_clip):
    """The authors' eva_clip_psz14.pt has the tower under `visual.`, without open_clip's `trunk.`"""
    published = from_timm(tiny_clip.state_dict())
    ours = EVAVisionTransformer(**OURS)
    ours.load_state_dict(published)
    assert torch.equal(ours.head.bias, tiny_clip.visual.trunk.head.bias)
    with pytest.raises(RuntimeError, match='bystander'):
        ours.load_state_dict(published | {'bystander': torch.ones(1)})


@torch.no_grad()
def test_backbone_takes_open_clips_file(tiny_clip, tmp_path):
    torch.save(tiny_clip.state_dict(), tmp_path / 'open_clip_pytorch_model.bin')
    options = {k: v for k, v in OURS.items() if k not in ('pooling', 'num_classes')}
    checkpoint = str(tmp_path / 'open_clip_pytorch_model.bin')
    backbone = EVAViT(
        **options, out_type='cls', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ).eval()
    backbone.init_weights()
    trunk = tiny_clip.visual.trunk
    expected = trunk.forward_head(trunk.forward_features(IMAGES), pre_logits=True)
    assert relative_error(backbone(IMAGES)[0], expected) < 1e-5
