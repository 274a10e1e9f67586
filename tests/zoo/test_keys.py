"""One table of names, both directions."""

import pytest
import torch
from mmcv.cnn.bricks.transformer import BaseTransformerLayer
from mmdet.registry import MODELS

from eva_mm.errors import InputError
from eva_mm.zoo.keys import (
    DETECTOR_KEYS,
    PARTS,
    SEGMENTOR_KEYS,
    TABLES,
    VIDEO_KEYS,
    KeyTable,
    class_rows,
    detect_kind,
    missing_names,
    unknown_names,
)

from ..helpers import load_config, shrink_detector
from .fresh import fresh, mask2former_head


def test_examples():
    pairs = {
        'backbone.net.blocks.3.attn.q_bias': 'backbone.blocks.3.attn.q_bias',
        'backbone.simfp_2.4.norm.weight': 'neck.simfp_2.4.norm.weight',
        'proposal_generator.rpn_head.conv.conv1.bias': 'rpn_head.rpn_conv.1.conv.bias',
        'roi_heads.box_head.2.conv4.norm.bias': 'roi_head.bbox_head.2.shared_convs.3.ln.bias',
        'roi_heads.box_head.0.conv1.weight': 'roi_head.bbox_head.0.shared_convs.0.conv.weight',
        'roi_heads.box_head.0.fc1.weight': 'roi_head.bbox_head.0.shared_fcs.0.weight',
        'roi_heads.box_predictor.1.cls_score.bias': 'roi_head.bbox_head.1.fc_cls.bias',
        'roi_heads.mask_head.mask_fcn2.weight': 'roi_head.mask_head.convs.1.conv.weight',
        'roi_heads.mask_head.predictor.bias': 'roi_head.mask_head.conv_logits.bias',
    }
    assert list(DETECTOR_KEYS.to_mm(dict.fromkeys(pairs))) == list(pairs.values())
    assert list(DETECTOR_KEYS.to_official(dict.fromkeys(pairs.values()))) == list(pairs)


def test_names_that_are_ours_already_stay():
    names = ['backbone.blocks.0.norm1.weight', 'roi_head.mask_head.upsample.weight']
    assert list(DETECTOR_KEYS.to_mm(dict.fromkeys(names))) == names


@pytest.mark.parametrize('name', ['coco/eva_cascade', 'lvis/eva_cascade'])
def test_round_trip_of_a_whole_model(name):
    cfg = shrink_detector(load_config(name))
    state = MODELS.build(cfg.model).state_dict()
    official = DETECTOR_KEYS.to_official(state)
    assert not any(key.startswith(('neck.', 'rpn_head.', 'roi_head.')) for key in official)
    back = DETECTOR_KEYS.to_mm(official)
    assert list(back) == list(state)
    assert all(torch.equal(back[k], state[k]) for k in state)


def test_collisions_are_an_error():
    table = KeyTable(('a.', 'b.'))
    with pytest.raises(ValueError, match="two parameters are called 'b.x'"):
        table.to_mm({'b.x': 1, 'a.x': 2})


def test_foreign_weights_are_refused():
    model = MODELS.build(shrink_detector(load_config('coco/eva_cascade')).model)
    with pytest.raises(
        ValueError, match="none of the .* EVACascadeRCNN is in the checkpoint.*'layer1"
    ):
        model.load_state_dict({'layer1.0.conv1.weight': torch.zeros(1)}, strict=False)


# ------------------------------------------------------------------------------- other tables


def test_video_names():
    pairs = {
        'pos_embed': 'backbone.pos_embed',
        'patch_embed.proj.weight': 'backbone.patch_embed.proj.weight',
        'blocks.3.attn.q_bias': 'backbone.blocks.3.attn.q_bias',
        'fc_norm.weight': 'cls_head.fc_norm.weight',
        'head.bias': 'cls_head.fc_cls.bias',
    }
    ours = VIDEO_KEYS.to_mm(dict.fromkeys(pairs))
    assert list(ours) == list(pairs.values())
    assert list(VIDEO_KEYS.to_mm(ours)) == list(pairs.values())
    assert list(VIDEO_KEYS.to_official(ours)) == list(pairs)


def old_style_layer(**attentions):
    """Layer of mmcv's generic transformer, which mmdet 2.22 built Mask2Former of."""
    order = tuple(part for name in attentions for part in (name, 'norm')) + ('ffn', 'norm')
    ffn = dict(type='FFN', embed_dims=32, feedforward_channels=64, num_fcs=2)
    return BaseTransformerLayer(
        attn_cfgs=list(attentions.values()), ffn_cfgs=ffn, operation_order=order
    )


def test_segmentor_names_are_those_of_both_generations():
    """Decoders of the installed mmdet, and layers of mmcv as the published configs build them."""
    head = mask2former_head()
    ours = {f'decode_head.{k}': v.shape for k, v in head.state_dict().items()}
    deformable = dict(
        type='MultiScaleDeformableAttention', embed_dims=32, num_heads=4, num_levels=3, num_points=4
    )
    plain = dict(type='MultiheadAttention', embed_dims=32, num_heads=4)
    encoder = old_style_layer(self_attn=deformable)
    decoder = old_style_layer(cross_attn=plain, self_attn=plain)
    published = {
        f'decode_head.{stack}.layers.{i}.{name}': value.shape
        for stack, layer in (
            ('pixel_decoder.encoder', encoder),
            ('transformer_decoder', decoder),
        )
        for i in range(2)
        for name, value in layer.state_dict().items()
    }
    official = SEGMENTOR_KEYS.to_official(ours)
    assert {k: v for k, v in official.items() if '.layers.' in k} == published
    assert unknown_names(official, 'segmentor') == []
    assert SEGMENTOR_KEYS.to_mm(official) == ours
    assert list(SEGMENTOR_KEYS.to_mm(ours)) == list(ours)
    # The first attention of a decoder layer looks at the image.
    first = 'decode_head.transformer_decoder.layers.1.{}.attn.in_proj_weight'
    mapped = SEGMENTOR_KEYS.to_mm({first.format('attentions.0'): 0})
    assert list(mapped) == [first.format('cross_attn')]


# --------------------------------------------------------------------------- what names are of


@pytest.mark.parametrize('kind', sorted(PARTS))
@pytest.mark.parametrize('ours', [False, True])
def test_kinds_are_told_by_names(kind, ours):
    weights = fresh(kind)
    if ours and kind in TABLES:
        weights = TABLES[kind].to_mm(weights)
    assert detect_kind(weights) == kind
    if not ours:
        assert unknown_names(weights, kind) == []
        missing, absent = missing_names(weights, kind)
        assert (missing, absent) == ([], [])


@pytest.mark.parametrize(
    ('names', 'message'),
    [
        (['conv1.weight', 'layer1.0.conv1.weight'], '2 names such as conv1.weight, layer1.0.conv1'),
        ([], '0 names such as nothing'),
    ],
)
def test_other_architectures_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        detect_kind(dict.fromkeys(names))


def test_lost_parts_are_found():
    names = [name for name in fresh('mim') if name != 'blocks.1.attn.proj.bias']
    assert missing_names(names, 'mim') == (['blocks.1.attn.proj.bias'], [])
    without_first = [name for name in fresh('mae') if not name.startswith('decoder_blocks.0.')]
    lost, _ = missing_names(without_first, 'mae')
    assert len(lost) == 12
    assert all(name.startswith('decoder_blocks.0.') for name in lost)
    # Not so what was left out on purpose.
    dropped = fresh('mae').keys() - set(without_first)
    assert missing_names(without_first, 'mae', dropped) == ([], [])


def test_either_form_of_a_part_is_whole():
    """One bias on queries, keys and values, or one on queries and one on values."""
    names = set(fresh('classifier'))
    assert {'blocks.0.attn.q_bias', 'fc_norm.bias'} < names
    other = {n for n in names if not n.endswith(('_bias', 'fc_norm.weight', 'fc_norm.bias'))}
    lost, _ = missing_names(other, 'classifier')
    assert 'blocks.1.attn.v_bias' in lost
    other |= {'blocks.0.attn.qkv.bias', 'blocks.1.attn.qkv.bias', 'norm.weight', 'norm.bias'}
    assert missing_names(other, 'classifier') == ([], [])
    other.remove('blocks.1.attn.qkv.bias')
    assert missing_names(other, 'classifier') == (['blocks.1.attn.qkv.bias'], [])


def test_rows_of_classes():
    rows = class_rows(fresh('detector'), 'detector')
    assert rows['roi_heads.box_predictor.2.cls_score.weight'] == 1
    assert rows['roi_heads.mask_head.predictor.bias'] == 0
    assert class_rows(fresh('mim'), 'mim') == {}
