"""The core against the authors' classifier: logits, features, loss and gradients."""

import pytest
import torch
import torch.nn.functional as F

from eva_mm.vit import EVAVisionTransformer

from ..helpers import relative_error
from .reference import reference_files


@pytest.mark.parametrize('path', reference_files('classifier_'))
def test_classifier(path):
    ref = torch.load(path, weights_only=True)
    c, state = ref['config'], ref['checkpoint']['model']
    model = EVAVisionTransformer(
        'giant',
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
        stop_grad_patch_embed=True,
    )
    model.load_state_dict(state)

    features = model.forward_features(ref['image'])
    pooled = model.pool(features)
    logits = model(ref['image'])
    assert relative_error(pooled, ref['pooled']) < 1e-4
    assert relative_error(logits, ref['logits']) < 1e-4
    assert relative_error(model.forward_patch_tokens(ref['image']), ref['patch_tokens']) < 1e-4

    loss = F.cross_entropy(logits, ref['labels'])
    assert relative_error(loss, ref['loss']) < 1e-4
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, expected in ref['grads'].items():
        assert relative_error(gradients[name], expected) < 1e-3, name
    assert gradients['patch_embed.proj.weight'] is None
