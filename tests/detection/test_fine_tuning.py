"""Starting from another detector: what may differ, and when."""

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner import load_checkpoint

from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.zoo.keys import DETECTOR_KEYS

from ..helpers import load_config, shrink_detector


def build(name, num_classes):
    return MODELS.build(shrink_detector(load_config(name), num_classes=num_classes).model)


@pytest.fixture
def objects365(tmp_path):
    """A detector of other classes and without mask head, under the published names."""
    state = build('coco/eva_cascade', 7).state_dict()
    boxes = {k: v + 1 for k, v in state.items() if not k.startswith('roi_head.mask_head')}
    file = tmp_path / 'objects365.pth'
    torch.save(dict(model=DETECTOR_KEYS.to_official(boxes)), file)
    return str(file), boxes


@pytest.mark.parametrize('name', ['coco/eva_cascade', 'lvis/eva_cascade'])
def test_training_starts_from_a_detector_of_other_classes(objects365, name):
    file, boxes = objects365
    torch.manual_seed(1)
    model = build(name, 5)
    model.init_weights()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_checkpoint(model, file)
    after = model.state_dict()
    new = {k for k in after if k not in boxes or boxes[k].shape != after[k].shape}
    assert any('mask_head.conv_logits' in k for k in new)
    assert {k for k in new if 'mask_head' not in k and 'fed_loss' not in k} == {
        f'roi_head.bbox_head.{stage}.fc_cls.{kind}'
        for stage in range(3)
        for kind in ('weight', 'bias')
    }
    for key, value in after.items():
        assert torch.equal(value, before[key] if key in new else boxes[key]), key


@pytest.mark.parametrize('name', ['coco/eva_cascade', 'lvis/eva_cascade'])
def test_tests_and_inference_need_all_of_it(objects365, name):
    with pytest.raises(CheckpointMismatchError) as error:
        load_checkpoint(build(name, 5), objects365[0])
    text = str(error.value)
    assert objects365[0] in text
    assert 'roi_head.mask_head.convs.{0-3}.conv.weight' in text
    assert 'roi_head.bbox_head.{0-2}.fc_cls.bias: model 6, checkpoint 8' in text
    assert 'backbone' not in text


def test_a_checkpoint_of_another_size_does_not_start_a_training(tmp_path):
    deeper = shrink_detector(load_config('coco/eva_cascade'), depth=6).model
    file = tmp_path / 'deeper.pth'
    torch.save(dict(state_dict=MODELS.build(deeper).state_dict()), file)
    model = build('coco/eva_cascade', 5)
    model.init_weights()
    with pytest.raises(CheckpointMismatchError, match=r'backbone\.blocks\.\{4-5\}\.attn\.'):
        load_checkpoint(model, str(file))


def test_own_checkpoints_move_between_coco_and_lvis_heads_of_equal_classes(tmp_path):
    """Only LVIS's has the image counts; they are the data set's, not the weights'."""
    file = tmp_path / 'lvis.pth'
    torch.save(dict(state_dict=build('lvis/eva_cascade', 5).state_dict()), file)
    load_checkpoint(build('coco/eva_cascade', 5), str(file))
