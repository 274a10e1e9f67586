"""ViT-Adapter against the authors' code: four maps, and every gradient.

The backbone is the leaf's, shrunk by options and loaded as a user's file is.
"""

import pytest
import torch
from mmengine.runner import load_checkpoint
from mmseg.registry import MODELS

from ..helpers import load_config, relative_error
from .reference import reference_files

LEAVES = {False: 'coco_stuff/eva_mask2former', True: 'coco_stuff/eva_mask2former_relpos'}


def shrunk_backbone(ref):
    """The leaf's backbone with the reference's sizes; the type stays."""
    c = ref['config']
    backbone = load_config(LEAVES[c['use_rel_pos_bias']], 'mmseg').model.backbone
    backbone.pop('init_cfg')
    backbone.update(
        img_size=c['img_size'],
        patch_size=c['patch_size'],
        embed_dim=c['embed_dim'],
        depth=c['depth'],
        num_heads=c['num_heads'],
        mlp_dim=int(c['embed_dim'] * c['mlp_ratio']),
        layer_scale=c['init_values'],
        drop_path_rate=c['drop_path_rate'],
        stem_channels=c['conv_inplane'],
        num_points=c['n_points'],
        deform_num_heads=c['deform_num_heads'],
        cffn_ratio=c['cffn_ratio'],
        deform_ratio=c['deform_ratio'],
        interaction_indexes=c['interaction_indexes'],
    )
    return backbone


@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('path', reference_files('adapter_'))
def test_adapter(path, recompute, tmp_path):
    ref = torch.load(path, weights_only=True)
    config = shrunk_backbone(ref)
    config.activation_checkpointing = recompute
    model = MODELS.build(config)
    torch.save(dict(state_dict=ref['state_dict']), tmp_path / 'published.pth')
    load_checkpoint(model, str(tmp_path / 'published.pth'))
    assert model.state_dict().keys() == ref['state_dict'].keys()

    # Recomputing belongs to training; the reference used the running statistics.
    model.train(recompute)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    features = model(ref['image'])
    assert len(features) == len(ref['features'])
    for own, expected in zip(features, ref['features']):
        assert relative_error(own, expected) < 1e-4

    sum(feature.square().mean() for feature in features).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, expected in ref['grads'].items():
        assert relative_error(gradients[name], expected) < 1e-3, name
