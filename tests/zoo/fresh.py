"""Tiny weights of every kind, under published names, made of the models of this package."""

import functools

import torch
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn

from eva_mm.vit import EVAVisionTransformer
from eva_mm.zoo.keys import DETECTOR_KEYS, SEGMENTOR_KEYS

from ..helpers import load_config, shrink_detector

DIM = 32


def vit(**options):
    """State dict of a core of two blocks on 4 x 4 patches of 14 px."""
    sizes = dict(embed_dim=DIM, depth=2, num_heads=4, mlp_dim=48, patch_size=14, img_size=56)
    model = EVAVisionTransformer('giant', **{**sizes, **options})
    return dict(randomised(model.state_dict()))


def randomised(state_dict):
    """Every floating-point tensor drawn anew, so that none equals another."""
    return {
        name: torch.randn_like(value) if value.is_floating_point() else value.clone()
        for name, value in state_dict.items()
    }


def _with_norm(weights):
    return {**weights, 'norm.weight': torch.randn(DIM), 'norm.bias': torch.randn(DIM)}


def _wb(name, *shape):
    """Weight of a shape, and bias."""
    return {f'{name}.weight': torch.randn(shape), f'{name}.bias': torch.randn(shape[0])}


def _mim():
    return _with_norm(
        {
            **vit(pooling=None),
            'mask_token': torch.randn(1, 1, DIM),
            'lm_head.weight': torch.randn(24, DIM),
            'lm_head.bias': torch.randn(24),
        }
    )


def _mae():
    decoder = vit(pooling=None, embed_dim=16, mlp_dim=64, qkv_bias='full')
    blocks = {f'decoder_{k}': v for k, v in decoder.items() if k.startswith('blocks.')}
    return _with_norm(
        {
            **vit(pooling=None, qkv_bias='full'),
            'mask_token': torch.randn(1, 1, 16),
            'decoder_pos_embed': decoder['pos_embed'],
            **_wb('decoder_embed', 16, DIM),
            **blocks,
            **_wb('decoder_norm', 16),
            **_wb('decoder_pred', 24, 16),
        }
    )


def _linear():
    weights = vit(pooling='cls')
    return {
        **weights,
        'head.0.running_mean': torch.randn(DIM),
        'head.0.running_var': torch.rand(DIM),
        'head.0.num_batches_tracked': torch.tensor(7),
        'head.1.weight': torch.randn(9, DIM),
        'head.1.bias': torch.randn(9),
    }


def _clip():
    tower = {f'visual.{k}': v for k, v in vit(pooling='cls', num_classes=16).items()}
    text = {
        'positional_embedding': torch.randn(7, 8),
        'text_projection': torch.randn(8, 16),
        'logit_scale': torch.tensor(4.6),
        'token_embedding.weight': torch.randn(11, 8),
        **_wb('ln_final', 8),
    }
    for i in range(2):
        block = f'transformer.resblocks.{i}.'
        text |= {
            block + 'attn.in_proj_weight': torch.randn(24, 8),
            block + 'attn.in_proj_bias': torch.randn(24),
            **_wb(block + 'attn.out_proj', 8, 8),
            **_wb(block + 'ln_1', 8),
            **_wb(block + 'ln_2', 8),
            **_wb(block + 'mlp.c_fc', 32, 8),
            **_wb(block + 'mlp.c_proj', 8, 32),
        }
    return {**tower, **{f'text.{k}': v for k, v in text.items()}}


def _detector():
    model = MODELS.build(shrink_detector(load_config('lvis/eva_cascade')).model)
    return randomised(DETECTOR_KEYS.to_official(model.state_dict()))


def mask2former_head():
    """mmdet's head at test size."""
    attention = dict(embed_dims=DIM, num_heads=4, batch_first=True)
    ffn = dict(embed_dims=DIM, feedforward_channels=64, num_fcs=2)
    encoder = dict(
        num_layers=2,
        layer_cfg=dict(self_attn_cfg=dict(**attention, num_levels=3, num_points=4), ffn_cfg=ffn),
    )
    decoder = dict(
        return_intermediate=True,
        num_layers=2,
        layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
    )
    sine = dict(num_feats=DIM // 2, normalize=True)
    pixel_decoder = dict(
        type='MSDeformAttnPixelDecoder',
        norm_cfg=dict(type='GN', num_groups=4),
        encoder=encoder,
        positional_encoding=sine,
    )
    return Mask2FormerHead(
        in_channels=[DIM] * 4,
        feat_channels=DIM,
        out_channels=DIM,
        num_things_classes=3,
        num_stuff_classes=2,
        num_queries=4,
        pixel_decoder=ConfigDict(pixel_decoder),
        transformer_decoder=ConfigDict(decoder),
        positional_encoding=ConfigDict(sine),
        loss_cls=ConfigDict(type='CrossEntropyLoss', class_weight=[1.0] * 5 + [0.1]),
    )


def _batch_norm(name, width):
    return {f'{name}.{k}': v for k, v in randomised(nn.BatchNorm2d(width).state_dict()).items()}


def _deformable(name):
    return {
        **_wb(f'{name}.query_norm', DIM),
        **_wb(f'{name}.feat_norm', DIM),
        **_wb(f'{name}.attn.sampling_offsets', 12, DIM),
        **_wb(f'{name}.attn.attention_weights', 6, DIM),
        **_wb(f'{name}.attn.value_proj', 16, DIM),
        **_wb(f'{name}.attn.output_proj', DIM, 16),
    }


def _extractor(name):
    return {
        **_deformable(name),
        **_wb(f'{name}.ffn_norm', DIM),
        **_wb(f'{name}.ffn.fc1', 8, DIM),
        **_wb(f'{name}.ffn.fc2', DIM, 8),
        **_wb(f'{name}.ffn.dwconv.dwconv', 8, 1, 3, 3),
    }


def _adapter():
    """What EVA-01/seg/backbone/beit_adapter.py has beside the transformer."""
    weights = {'level_embed': torch.randn(3, DIM), **_wb('up', DIM, DIM, 2, 2)}
    for i in range(4):
        injector = f'interactions.{i}.injector'
        weights |= {f'{injector}.gamma': torch.randn(DIM), **_deformable(injector)}
        weights |= _extractor(f'interactions.{i}.extractor')
        weights |= _batch_norm(f'norm{i + 1}', DIM)
        weights |= _wb(f'spm.fc{i + 1}', DIM, 8, 1, 1)
    for i in range(2):
        weights |= _extractor(f'interactions.3.extra_extractors.{i}')
    for name in ('stem.0', 'stem.3', 'stem.6', 'conv2.0', 'conv3.0', 'conv4.0'):
        weights[f'spm.{name}.weight'] = torch.randn(8, 8, 3, 3)
        following = f'{name[:-1]}{int(name[-1]) + 1}'
        weights |= _batch_norm(f'spm.{following}', 8)
    return weights


def _segmentor():
    head = {f'decode_head.{k}': v for k, v in mask2former_head().state_dict().items()}
    backbone = {f'backbone.{k}': v for k, v in {**vit(pooling=None), **_adapter()}.items()}
    return {**backbone, **SEGMENTOR_KEYS.to_official(randomised(head))}


def _video():
    """Eight frames of 4 x 4 patches."""
    weights = vit(num_classes=9)
    weights['patch_embed.proj.weight'] = torch.randn(DIM, 3, 1, 14, 14)
    weights['pos_embed'] = torch.randn(1, 1 + 8 * 16, DIM)
    return weights


_MAKERS = {
    'mim': _mim,
    'mae': _mae,
    'classifier': lambda: vit(num_classes=9),
    'linear': _linear,
    'clip': _clip,
    'clip_vision': lambda: vit(pooling='cls', num_classes=1024),
    'detector': _detector,
    'segmentor': _segmentor,
    'video': _video,
}


@functools.cache
def _made(kind):
    return _MAKERS[kind]()


def fresh(kind):
    """Published names and random tensors of a kind; five classes in detectors and segmentors,
    nine in classifiers."""
    return dict(_made(kind))
