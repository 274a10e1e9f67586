"""The classifier against the authors' code: logits, features, loss and gradients.

The model is the leaf's, shrunk by options and loaded as a user's file is.
"""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from ..helpers import load_config, relative_error
from .reference import reference_files


def shrunk_leaf(ref):
    """Config of the fine-tuning with the reference's sizes; the types stay."""
    c, state = ref['config'], ref['checkpoint']['model']
    cfg = load_config('imagenet/eva_g_in1k_336', 'mmengine')
    cfg.model.update(
        img_size=c['img_size'],
        patch_size=c['patch_size'],
        embed_dim=c['embed_dim'],
        depth=c['depth'],
        num_heads=c['num_heads'],
        mlp_dim=int(c['embed_dim'] * c['mlp_ratio']),
        qkv_bias='full' if 'blocks.0.attn.qkv.bias' in state else 'qv',
        num_classes=c['num_classes'],
        pooling='mean' if c['use_mean_pooling'] else 'cls',
        norm_eps=c['layer_norm_eps'],
        drop_path_rate=0.0,
        label_smoothing=0.0,
        allowed_missing=[],
    )
    return cfg


@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('path', reference_files('classifier_'))
def test_classifier(path, recompute, tmp_path):
    ref = torch.load(path, weights_only=True)
    cfg = shrunk_leaf(ref)
    cfg.model.activation_checkpointing = recompute
    model = MODELS.build(cfg.model)
    torch.save(ref['checkpoint'], tmp_path / 'published.pt')
    load_checkpoint(model, str(tmp_path / 'published.pt'))
    assert set(model.state_dict()) == set(ref['checkpoint']['model'])

    model.train()
    features = model.forward_features(ref['image'])
    assert relative_error(model.pool(features), ref['pooled']) < 1e-4
    assert relative_error(model.extract_feat(ref['image']), ref['pooled']) < 1e-4
    assert relative_error(model(ref['image']), ref['logits']) < 1e-4
    assert relative_error(model.forward_patch_tokens(ref['image']), ref['patch_tokens']) < 1e-4
    for row, sample in zip(ref['logits'], model(ref['image'], ref['labels'], mode='predict')):
        assert relative_error(sample['logits'], row) < 1e-4

    loss = model(ref['image'], ref['labels'], mode='loss')['loss']
    assert relative_error(loss, ref['loss']) < 1e-4
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, expected in ref['grads'].items():
        assert relative_error(gradients[name], expected) < 1e-3, name
    assert gradients['patch_embed.proj.weight'] is None
