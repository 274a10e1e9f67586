"""The leaf of EVA-g, shrunk, against the authors' pretraining: prediction, loss and gradients."""

import pytest
import torch
from mmengine.registry import MODELS

from ..helpers import load_config, relative_error
from .pretraining import fixed_teacher
from .reference import reference_files


@pytest.mark.parametrize('path', reference_files('mim_'))
def test_masked_student(path):
    ref = torch.load(path, weights_only=True)
    c = ref['config']
    cfg = load_config('pretrain/eva_g_merged30m', scope='mmengine')
    cfg.merge_from_dict(
        dict(
            model=dict(
                img_size=c['img_size'],
                patch_size=c['patch_size'],
                embed_dim=c['embed_dim'],
                depth=c['depth'],
                num_heads=c['num_heads'],
                mlp_dim=int(c['embed_dim'] * c['mlp_ratio']),
                norm_eps=c['layer_norm_eps'],
                drop_path_rate=0.0,
            )
        )
    )
    cfg.model.teacher = fixed_teacher(ref)
    model = MODELS.build(cfg.model)
    model.load_state_dict(ref['checkpoint']['model'])

    prediction = model(ref['image'], ref['mask'])[ref['mask']]
    assert relative_error(prediction, ref['prediction']) < 1e-4
    loss = model.train()(ref['image'], ref['mask'], mode='loss')['loss']
    assert relative_error(loss, ref['loss']) < 1e-4
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == ref['grads'].keys()
    for name, expected in ref['grads'].items():
        assert relative_error(gradients[name], expected) < 1e-3, name
