"""Every classification config: small for a training and a test step, by its own components."""

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

import eva_mm

from ..helpers import load_config
from ..test_configs import types_of
from .small import shrink_classifier

# All that train a classifier; zero-shot evaluation has no step to take.
NAMES = [n for n in eva_mm.list_configs() if n.startswith('imagenet/') and 'zeroshot' not in n]
NAMES += ['demo/imagenet']


@pytest.mark.parametrize('name', NAMES)
def test_small_classifier_takes_a_training_and_a_test_step(name):
    cfg = shrink_classifier(load_config(name, 'mmengine'))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    image = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    batch = dict(image=image, label=torch.tensor([0, 1, 4, 2]), img_path=list('abcd'))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = model.train().train_step(copy.deepcopy(batch), wrapper)
    assert torch.isfinite(losses['loss'])
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    if cfg.model.get('linear_probe'):
        assert moved == {'head.1.weight', 'head.1.bias'}
    else:
        assert {'head.weight', 'fc_norm.weight', 'blocks.0.norm1.bias', 'pos_embed'} <= moved
        stopped = cfg.model.stop_grad_patch_embed
        assert ('patch_embed.proj.weight' in moved) is not stopped
    with torch.no_grad():
        results = model.eval().test_step(copy.deepcopy(batch))
    assert [r['img_path'] for r in results] == list('abcd')
    assert results[0]['logits'].shape == (5,)


def test_demo_has_the_types_of_its_leaf():
    assert types_of(load_config('demo/imagenet', 'mmengine')) == types_of(
        load_config('imagenet/eva_g_in1k_336', 'mmengine')
    )


@pytest.mark.parametrize('leaf', ['imagenet/eva_g_finetune', 'imagenet/eva_l_finetune'])
def test_own_data_has_the_types_of_the_published_run(leaf):
    name = 'eva_g_in1k_336' if 'eva_g' in leaf else 'eva_l_in21k_in1k_336'
    published = load_config(f'imagenet/{name}', 'mmengine')
    assert types_of(load_config(leaf, 'mmengine')) == types_of(published)
