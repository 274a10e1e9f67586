"""Groups of `EVALayerDecay`, compared as full tables with the published rules."""

import math

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn

from eva_mm.engine.layer_decay import param_group_table
from tests.toy_task import ToyBackbone, ToyClassifier

DECAY, LR, WD = 0.5, 0.8, 0.1
# Closed form for three blocks: ids 0 to 4, rate lr * decay ** (4 - id).
DEPTHS = {
    'backbone.pos_embed': 0,
    'backbone.cls_token': 0,
    'backbone.patch_embed.weight': 0,
    'backbone.patch_embed.bias': 0,
    **{
        f'backbone.blocks.{block}.{name}': block + 1
        for block in range(3)
        for name in ('norm.weight', 'norm.bias', 'fc.weight', 'fc.bias')
    },
    'backbone.fpn.weight': 4,
    'backbone.fpn.bias': 4,
    'query.weight': 4,
    'head.weight': 4,
    'head.bias': 4,
}
RATES = {0: 0.05, 1: 0.1, 2: 0.2, 3: 0.4, 4: 0.8}


def make_model(**backbone):
    return ToyClassifier(backbone=dict(type='ToyBackbone', **backbone))


def build(model, wrapper='OptimWrapper', optimizer=None, **paramwise):
    return build_optim_wrapper(
        model,
        dict(
            type=wrapper,
            constructor='EVALayerDecay',
            optimizer=optimizer or dict(type='AdamW', lr=LR, weight_decay=WD),
            paramwise_cfg=paramwise,
        ),
    )


def table(wrapper):
    """Name -> (lr, weight decay), and no name twice."""
    rows = param_group_table(wrapper)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: (pytest.approx(row.lr), row.weight_decay) for row in rows}


def expected(spared=(), depths=DEPTHS, without=()):
    return {
        name: (RATES[depth], 0.0 if name in spared else WD)
        for name, depth in depths.items()
        if name not in without
    }


ONE_DIM = {name for name in DEPTHS if name.endswith('bias') or '.norm.' in name}


def test_detection_decays_every_parameter():
    wrapper = build(make_model(), layer_decay=DECAY)
    assert table(wrapper) == expected()
    names = [group['name'] for group in wrapper.optimizer.param_groups]
    assert names == [f'layer_{i}_decay' for i in range(5)]
    scales = [group['lr_scale'] for group in wrapper.optimizer.param_groups]
    assert scales == [0.0625, 0.125, 0.25, 0.5, 1.0]


def test_classification_spares_vectors_biases_and_named_tensors():
    no_decay = dict(one_dim=True, bias=True, names=['pos_embed', 'cls_token'])
    wrapper = build(make_model(), layer_decay=DECAY, no_decay=no_decay)
    spared = ONE_DIM | {'backbone.pos_embed', 'backbone.cls_token'}
    assert table(wrapper) == expected(spared)
    assert len(wrapper.optimizer.param_groups) == 10


def test_segmentation_overrides_depths_by_prefix():
    wrapper = build(
        make_model(),
        layer_decay=DECAY,
        no_decay=dict(one_dim=True, bias=True),
        depth_overrides={'query': 0, 'backbone.blocks': 2, 'backbone.blocks.1.fc': 0},
    )
    depths = dict(DEPTHS)
    for name in DEPTHS:
        if name.startswith('backbone.blocks.1.fc') or name == 'query.weight':
            depths[name] = 0
        elif name.startswith('backbone.blocks.'):
            depths[name] = 2
    assert table(wrapper) == expected(ONE_DIM, depths)


def test_factors_come_on_top_of_the_layers():
    wrapper = build(
        make_model(),
        layer_decay=DECAY,
        no_decay=dict(one_dim=True),
        lr_factors={'backbone.blocks.1': 10.0, 'backbone.blocks.1.fc': 0.5},
    )
    plain = build(make_model(), layer_decay=DECAY, no_decay=dict(one_dim=True))
    before = {row.name: row for row in param_group_table(plain)}
    seen = set()
    for row in param_group_table(wrapper):
        factor = 1.0
        if row.name.startswith('backbone.blocks.1.'):
            factor = 0.5 if row.name.startswith('backbone.blocks.1.fc.') else 10.0
        assert row.lr == pytest.approx(before[row.name].lr * factor, rel=1e-12)
        assert row.weight_decay == before[row.name].weight_decay
        seen.add(factor)
    assert seen == {1.0, 0.5, 10.0}


def test_bias_alone_spares_biases_but_not_norm_weights():
    wrapper = build(make_model(), layer_decay=DECAY, no_decay=dict(bias=True))
    assert table(wrapper) == expected({name for name in DEPTHS if name.endswith('bias')})


def test_a_name_spares_whole_dotted_parts_only():
    model = make_model()
    model.old_pos_embed = nn.Parameter(torch.zeros(2, 2))
    rows = table(build(model, layer_decay=DECAY, no_decay=dict(names=['pos_embed'])))
    assert rows['backbone.pos_embed'][1] == 0
    assert rows['old_pos_embed'][1] == WD


def test_frozen_parameters_are_left_out():
    wrapper = build(make_model(frozen_patches=True), layer_decay=DECAY)
    frozen = {'backbone.patch_embed.weight', 'backbone.patch_embed.bias'}
    assert table(wrapper) == expected(without=frozen)


def test_the_model_itself_may_know_its_depths():
    wrapper = build(ToyBackbone(), layer_decay=DECAY)
    prefix = 'backbone.'
    depths = {n.removeprefix(prefix): d for n, d in DEPTHS.items() if n.startswith(prefix)}
    assert table(wrapper) == expected(depths=depths)


def test_meta_device_gives_the_same_groups():
    with torch.device('meta'):
        model = make_model()
    assert table(build(model, layer_decay=DECAY)) == expected()


def test_wrapped_for_data_parallelism(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(make_model())
        assert table(build(model, layer_decay=DECAY)) == expected()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize('paramwise', [{}, dict(layer_decay=1.0)])
def test_without_layer_decay_one_group_and_no_depths_needed(paramwise):
    wrapper = build(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), **paramwise)
    (group,) = wrapper.optimizer.param_groups
    assert (group['lr'], group['weight_decay'], len(group['params'])) == (LR, WD, 4)


def test_layers_of_one_rate_share_a_group():
    wrapper = build(make_model(), layer_decay=1.0, no_decay=dict(one_dim=True))
    names = [group['name'] for group in wrapper.optimizer.param_groups]
    assert names == ['layers_0_to_4_decay', 'layers_0_to_4_no_decay']


def test_schedulers_keep_the_ratios():
    wrapper = build(make_model(), layer_decay=DECAY)
    cosine = dict(type='CosineAnnealingLR', T_max=4, by_epoch=False)
    scheduler = PARAM_SCHEDULERS.build(cosine, default_args=dict(optimizer=wrapper))
    wrapper.step()
    scheduler.step()
    factor = (1 + math.cos(math.pi / 4)) / 2
    assert [g['lr'] for g in wrapper.optimizer.param_groups] == pytest.approx(
        [rate * factor for rate in RATES.values()]
    )
    assert wrapper.get_lr()['base_lr'] == [pytest.approx(LR * factor)]


def test_a_step_moves_each_layer_by_its_rate():
    """Under SGD without decay a gradient of one moves a parameter by exactly its rate."""
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapper = build(model, optimizer=dict(type='SGD', lr=LR), layer_decay=DECAY)
    wrapper.update_params(sum(p.sum() for p in model.parameters()))
    for name, param in model.named_parameters():
        moved = before[name] - param.detach()
        assert torch.allclose(moved, torch.full_like(moved, RATES[DEPTHS[name]]), atol=1e-6), name


def test_state_is_saved_safely_and_resumed(tmp_path):
    model = make_model()
    wrapper = build(model, layer_decay=DECAY)
    wrapper.update_params(sum((p**2).sum() for p in model.parameters()))
    torch.save(wrapper.state_dict(), tmp_path / 'state.pth')
    other = build(make_model(), layer_decay=DECAY)
    other.load_state_dict(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert table(other) == expected()
    saved, loaded = wrapper.optimizer.state_dict(), other.optimizer.state_dict()
    assert all(
        torch.equal(saved['state'][i]['exp_avg'], loaded['state'][i]['exp_avg'])
        for i in saved['state']
    )


def test_names_come_from_the_model_for_other_constructors():
    model = make_model()
    cfg = dict(optimizer=dict(type='AdamW', lr=LR, weight_decay=WD))
    rows = param_group_table(build_optim_wrapper(model, cfg), model)
    assert {row.name for row in rows} == set(DEPTHS)
    assert {row[1:] for row in rows} == {(LR, WD, 'group_0')}


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [
        (dict(decay_rate=0.9), r"paramwise_cfg has unknown keys \['decay_rate'\].*'layer_decay'"),
        (dict(no_decay=dict(norm=True)), r"no_decay has unknown keys \['norm'\].*'one_dim'"),
        (dict(layer_decay=1.5), r'\(0, 1\], but got 1.5'),
        (dict(layer_decay=0), r'\(0, 1\], but got 0'),
        (dict(no_decay=dict(names=['pos_embd'])), "'pos_embd' fits no parameter"),
        (dict(depth_overrides={'head.mask': 0}), "'head.mask' fits no parameter"),
        (dict(lr_factors={'head.mask': 2.0}), "lr_factors: 'head.mask' fits no parameter"),
        (dict(lr_factors={'head': 0}), "the factor of 'head' should be above 0, but got 0"),
    ],
)
def test_bad_settings_are_named(paramwise, message):
    with pytest.raises(ValueError, match=message):
        build(make_model(), **paramwise)


def test_an_optimizer_without_a_rate_is_refused():
    with pytest.raises(ValueError, match='optimizer.lr'):
        build(make_model(), optimizer=dict(type='AdamW'), layer_decay=DECAY)


def test_depths_are_needed_for_a_decay():
    with pytest.raises(TypeError, match='neither Linear nor its backbone'):
        build(nn.Linear(2, 2), layer_decay=DECAY)
