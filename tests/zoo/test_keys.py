"""One table of names, both directions."""

import pytest
import torch
from mmdet.registry import MODELS

from eva_mm.zoo.keys import DETECTOR_KEYS, KeyTable

from ..helpers import load_config, shrink_detector


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
