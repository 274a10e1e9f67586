"""The leaf's teacher, shrunk, against the authors' ``encode_image`` on OpenAI's weights."""

import pytest
import torch
from mmengine.registry import MODELS

from ..helpers import load_config, relative_error
from .reference import reference_files


@pytest.mark.parametrize('path', reference_files('clip_teacher_'))
@pytest.mark.parametrize('wrapped', [False, True])
def test_patch_targets(path, wrapped, tmp_path):
    ref = torch.load(path, weights_only=True)
    c, weights = ref['config'], ref['openai_state_dict']
    file = tmp_path / 'openai.pt'
    torch.save(dict(state_dict=weights) if wrapped else weights, file)
    cfg = load_config('pretrain/eva_g_merged30m', scope='mmengine').model.teacher
    vision = {k: c[k] for k in ('image_size', 'layers', 'width', 'head_width', 'patch_size')}
    cfg.model = dict(
        embed_dim=c['embed_dim'], quick_gelu=c['quick_gelu'], vision_cfg=vision, text_cfg=c['text']
    )
    cfg.weights = str(file)
    teacher = MODELS.build(cfg)
    targets = teacher(ref['image'])
    assert targets.shape == ref['patch_targets'].shape
    assert relative_error(targets, ref['patch_targets']) < 1e-4
    assert not targets.requires_grad
