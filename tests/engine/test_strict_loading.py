"""Checkpoints that do not fit are refused, on every way in, unless the caller allowed it."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn

from eva_mm.engine.strict_loading import (
    CheckpointMismatchError,
    StrictLoading,
    compact,
    load_whole_checkpoint,
)


class Net(StrictLoading, BaseModule):
    may_be_missing = ('fresh.*',)
    may_be_unexpected = ('leftover',)

    def __init__(self, width=2, depth=2, **kwargs):
        super().__init__(**kwargs)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.fresh = nn.Linear(width, 1)
        self.head = nn.Linear(width, 3)


class Trained(Net):
    def has_initial_weights(self):
        return self.is_init


def saved(tmp_path, state_dict):
    file = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=state_dict), file)
    return str(file)


@pytest.fixture
def warnings(monkeypatch):
    texts = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(
        logger, 'log', lambda level, text: level > logging.INFO and texts.append((level, text))
    )
    return texts


def test_what_fits_loads_without_a_word(tmp_path, warnings):
    source, model = Net(), Net()
    state = {k: v for k, v in source.state_dict().items() if not k.startswith('fresh')}
    load_checkpoint(model, saved(tmp_path, {**state, 'leftover': torch.ones(1)}), logger='current')
    assert torch.equal(model.head.weight, source.head.weight)
    assert warnings == []


@pytest.mark.parametrize(
    ('options', 'lines'),
    [
        (
            dict(depth=4),
            ['unknown to the model (4):', 'blocks.{2-3}.{bias,weight}'],
        ),
        (
            dict(depth=1),
            ['missing in the checkpoint (2):', 'blocks.1.{bias,weight}'],
        ),
        (
            dict(width=5),
            [
                'of another shape (5):',
                'blocks.{0-1}.weight: model 2 x 2, checkpoint 5 x 5',
                'blocks.{0-1}.bias: model 2, checkpoint 5',
                'head.weight: model 3 x 2, checkpoint 3 x 5',
            ],
        ),
    ],
)
def test_each_side_is_listed(tmp_path, options, lines):
    file = saved(tmp_path, Net(**options).state_dict())
    with pytest.raises(CheckpointMismatchError) as error:
        load_checkpoint(Net(), file)
    text = str(error.value)
    assert text.startswith(f'Net and {file} do not fit\n')
    for line in lines:
        assert line in text
    if 'width' in options:
        # fresh.weight may be missing, so it may have another shape as well.
        assert 'fresh' not in text


def test_what_the_caller_allowed_is_reported(tmp_path, warnings):
    state = {k: v for k, v in Net().state_dict().items() if not k.startswith('head')}
    file = saved(tmp_path, {**state, 'ema_decay': torch.ones(1)})
    model = Net(allowed_missing=['head.*'], allowed_unexpected=['ema_*'])
    load_checkpoint(model, file, logger='current')
    ((level, text),) = warnings
    assert level == logging.WARNING
    assert text.startswith(f'Net and {file} differ as the config allows')
    assert 'head.{bias,weight}' in text
    assert 'ema_decay' in text
    assert 'fresh' not in text
    with pytest.raises(CheckpointMismatchError, match='ema_decay'):
        load_checkpoint(Net(allowed_missing=['head.*']), file)
    with pytest.raises(CheckpointMismatchError, match=r'head\.\{bias,weight\}'):
        load_checkpoint(model, file, strict=True)


def test_allowed_missing_holds_in_training_only(tmp_path):
    """A tensor that stays needs an initialisation, which a test never makes."""
    file = saved(tmp_path, {k: v for k, v in Net().state_dict().items() if 'head' not in k})
    model = Trained(allowed_missing=['head.*'])
    with pytest.raises(CheckpointMismatchError, match='in training only'):
        load_checkpoint(model, file)
    model.init_weights()
    load_checkpoint(model, file)


def test_pretrained_backbones(tmp_path):
    MODELS.register_module(module=Net, name='StrictNet')
    try:
        wrong = saved(tmp_path, Net(depth=3).state_dict())
        init = dict(type='Pretrained', checkpoint=wrong)
        with pytest.raises(CheckpointMismatchError, match=r'blocks\.2'):
            MODELS.build(dict(type='StrictNet', init_cfg=init)).init_weights()
        # A part of a larger file, by its prefix.
        whole = {f'backbone.{k}': v for k, v in Net(depth=3).state_dict().items()}
        init = dict(type='Pretrained', checkpoint=saved(tmp_path, whole), prefix='backbone.')
        with pytest.raises(CheckpointMismatchError, match=r'blocks\.2'):
            MODELS.build(dict(type='StrictNet', init_cfg=init)).init_weights()
    finally:
        MODELS.module_dict.pop('StrictNet')


def test_other_models_load_as_before(tmp_path):
    model = nn.Linear(2, 2)
    load_checkpoint(model, saved(tmp_path, dict(weight=torch.ones(2, 2), other=torch.ones(1))))
    assert torch.equal(model.weight, torch.ones(2, 2))


class Stock(nn.Module):
    """A model of a host around a part of ours."""

    def __init__(self):
        super().__init__()
        self.part = Net()
        self.norm = nn.BatchNorm1d(2)


def test_whole_checkpoint_of_another_model(tmp_path):
    source, model = Stock(), Stock()
    source.norm.running_mean.fill_(3)
    state = source.state_dict()
    # What the part allows, a counter and a table of indices may differ; nothing else may.
    del state['part.fresh.weight'], state['norm.num_batches_tracked']
    meta = dict(classes=('a',))
    file = tmp_path / 'whole.pth'
    torch.save(dict(state_dict=dict(state, table=torch.arange(3)), meta=meta), file)
    assert load_whole_checkpoint(model, str(file))['meta'] == meta
    assert torch.equal(model.part.head.weight, source.part.head.weight)
    assert torch.equal(model.norm.running_mean, torch.full((2,), 3.0))


@pytest.mark.parametrize(
    ('changes', 'line'),
    [
        ({'norm.running_mean': None}, r'missing in the checkpoint \(1\):\n    norm.running_mean'),
        ({'extra.weight': torch.ones(1)}, r'unknown to the model \(1\):\n    extra.weight'),
        ({'norm.bias': torch.ones(3)}, 'norm.bias: model 2, checkpoint 3'),
    ],
)
def test_parts_of_another_model_are_refused(tmp_path, changes, line):
    state = {k: v for k, v in {**Stock().state_dict(), **changes}.items() if v is not None}
    file = saved(tmp_path, state)
    with pytest.raises(
        CheckpointMismatchError, match=f'(?s)Stock and .*weights.pth do not fit\n.*{line}'
    ):
        load_whole_checkpoint(Stock(), file)


def test_whole_checkpoint_of_a_strict_model_keeps_its_allowances(tmp_path):
    state = Net().state_dict()
    del state['head.bias']
    model = Net(allowed_missing=['head.bias'])
    load_whole_checkpoint(model, saved(tmp_path, state))
    assert torch.equal(model.head.weight, state['head.weight'])
    with pytest.raises(CheckpointMismatchError, match='head.bias'):
        load_whole_checkpoint(Net(), saved(tmp_path, state))


def test_published_pretraining_weights_fit_the_detection_backbone(tmp_path):
    """Leftovers of pretraining go unused, relative positions start at zero, sizes are resized."""
    pytest.importorskip('mmdet')
    from eva_mm.detection import EVAViTDet
    from eva_mm.vit import EVAVisionTransformer

    sizes = dict(size='tiny', embed_dim=32, depth=2, num_heads=2, mlp_dim=64)
    source = EVAVisionTransformer(**sizes, img_size=56, patch_size=14, pooling='cls')
    extra = {'mask_token': torch.zeros(1, 1, 32), 'lm_head.weight': torch.zeros(8, 32)}
    file = saved(tmp_path, {**source.state_dict(), **extra})
    options = dict(**sizes, img_size=128, pretrain_img_size=64, patch_size=16, window_size=4)
    model = EVAViTDet(**options, init_cfg=dict(type='Pretrained', checkpoint=file))
    model.init_weights()
    assert torch.equal(model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert not model.blocks[1].attn.rel_pos_h.any()
    wider = EVAViTDet(**{**options, 'mlp_dim': 96})
    with pytest.raises(CheckpointMismatchError, match='fc1.weight: model 96 x 32, checkpoint 64'):
        load_checkpoint(wider, file)


def test_compact_names():
    assert compact(['a.0.x', 'a.1.x', 'a.5.x', 'b']) == ['a.{0-1,5}.x', 'b']
    assert compact(['s.0.c.1.w', 's.1.c.1.w']) == ['s.{0-1}.c.1.w']


def test_values_that_cannot_be_copied_are_refused(tmp_path):
    """torch notes them and goes on; mmengine prints the note."""
    state = dict(Net().state_dict())
    state['head.weight'] = state['head.weight'].numpy()
    with pytest.raises(CheckpointMismatchError, match='1 values cannot be copied.*head.weight'):
        load_checkpoint(Net(), saved(tmp_path, state))
