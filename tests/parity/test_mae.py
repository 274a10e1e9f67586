"""The leaf of EVA-L, shrunk, against the authors' pretraining: latents, prediction, gradients."""

import pytest
import torch
from mmengine.registry import MODELS

from ..helpers import load_config, relative_error
from .pretraining import fixed_teacher
from .reference import reference_files

# The file has the gradients of the first blocks and of the layers beside them.
LISTED = ('patch_embed.', 'blocks.0.', 'decoder_embed.', 'decoder_blocks.0.', 'decoder_pred.')


@pytest.mark.parametrize('path', reference_files('mae_'))
def test_encoder_and_decoder(path):
    ref = torch.load(path, weights_only=True)
    c = ref['config']
    cfg = load_config('pretrain/eva_l_in21k', scope='mmengine')
    cfg.merge_from_dict(
        dict(
            model=dict(
                img_size=c['img_size'],
                patch_size=c['patch_size'],
                embed_dim=c['embed_dim'],
                depth=c['depth'],
                num_heads=c['num_heads'],
                mlp_dim=4 * c['embed_dim'],
                decoder_embed_dim=c['decoder_embed_dim'],
                decoder_depth=c['decoder_depth'],
                decoder_num_heads=c['decoder_num_heads'],
                mask_ratio=c['mask_ratio'],
                norm_eps=c['layer_norm_eps'],
            )
        )
    )
    cfg.model.teacher = fixed_teacher(ref)
    model = MODELS.build(cfg.model)
    published = ref['checkpoint']['model']
    # Fixed positions: made here, not only loaded.
    for name in ('pos_embed', 'decoder_pos_embed'):
        assert relative_error(model.state_dict()[name], published[name]) < 1e-6, name
    model.load_state_dict(published)

    latent, _ = model.encode(ref['image'], ref['noise'])
    assert relative_error(latent, ref['latent']) < 1e-4
    prediction, removed = model.predict_patches(ref['image'], noise=ref['noise'])
    assert torch.equal(removed, ref['mask'].bool())
    assert relative_error(prediction, ref['prediction']) < 1e-4
    loss = model.train()(ref['image'], noise=ref['noise'], mode='loss')['loss']
    assert relative_error(loss, ref['loss_negated_cosine']) < 1e-4
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert {n for n, g in gradients.items() if g is None} == {'pos_embed', 'decoder_pos_embed'}
    assert gradients.keys() == published.keys()
    assert ref['grads'].keys() == {n for n in gradients if n.startswith(LISTED)}
    for name, expected in ref['grads'].items():
        assert relative_error(gradients[name], expected) < 1e-3, name
