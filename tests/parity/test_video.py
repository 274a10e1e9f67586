"""The leaves of Kinetics, shrunk, against the authors' video code."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from ..helpers import load_config, relative_error
from .reference import reference_files

pytest.importorskip('decord')
if find_spec('mmaction') is None:
    pytest.skip('needs mmaction2', allow_module_level=True)

VIDEO_FILES = reference_files('video_')


def build(ref, leaf, frames_factor=1, **head):
    """A leaf's recognizer with the reference's sizes; the types stay."""
    c = ref['config']
    cfg = load_config(f'kinetics/{leaf}', 'mmaction')
    from mmaction.registry import MODELS

    cfg.model.backbone.update(
        img_size=c['img_size'],
        num_frames=c['num_frames'] * frames_factor,
        tubelet_size=c['tubelet_size'],
        patch_size=c['patch_size'],
        embed_dim=c['embed_dim'],
        depth=c['depth'],
        num_heads=c['num_heads'],
        mlp_dim=int(c['embed_dim'] * c['mlp_ratio']),
        norm_eps=c['layer_norm_eps'],
        drop_path_rate=0.0,
    )
    cfg.model.cls_head.update(
        num_classes=c['num_classes'],
        in_channels=c['embed_dim'],
        label_smooth_eps=ref['label_smoothing'],
        **head,
    )
    return MODELS.build(cfg.model)


def load(model, checkpoint, path):
    from mmengine.runner import load_checkpoint

    torch.save(checkpoint, path)
    load_checkpoint(model, str(path))


def samples(labels):
    from mmaction.structures import ActionDataSample

    return [ActionDataSample().set_gt_label(int(label)) for label in labels]


@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('leaf', ['eva_g_k722', 'eva_g_k400'])
@pytest.mark.parametrize('path', VIDEO_FILES)
def test_recognizer(path, leaf, recompute, tmp_path):
    ref = torch.load(path, weights_only=True)
    model = build(ref, leaf)
    model.backbone.activation_checkpointing = recompute
    load(model, ref['checkpoint'], tmp_path / 'published.pth')
    clips = ref['video_NTCHW'].transpose(1, 2)[:, None]  # one view

    model.train()
    tokens = model(clips, stage='backbone')
    assert tokens.shape[2] == ref['config']['num_frames']
    assert relative_error(model.cls_head.pool(tokens), ref['pooled']) < 1e-4
    assert relative_error(model(clips, stage='head'), ref['logits']) < 1e-4
    scores = [s.pred_score for s in model(clips, samples(ref['labels']), mode='predict')]
    assert relative_error(torch.stack(scores), ref['logits'].softmax(1)) < 1e-4

    loss = model(clips, samples(ref['labels']), mode='loss')['loss_cls']
    assert relative_error(loss, ref['loss']) < 1e-4
    loss.backward()
    gradients = {name: p.grad for name, p in model.backbone.named_parameters()}
    for name, expected in ref['grads'].items():
        assert relative_error(gradients[name], expected) < 1e-3, name


@pytest.mark.parametrize('path', VIDEO_FILES)
def test_image_weights_become_those_of_clips(path, tmp_path):
    ref = torch.load(path, weights_only=True)
    model = build(ref, 'eva_g_k722')
    model.init_weights()
    image = dict(ref['checkpoint']['model'], **ref['image_checkpoint']['model'])
    # What pretraining has besides, and no head, as `eva_psz14`.
    image = {k: v for k, v in image.items() if not k.startswith(('fc_norm.', 'head.'))}
    width = ref['config']['embed_dim']
    image.update(mask_token=torch.zeros(1, 1, width), **{'lm_head.weight': torch.zeros(7, width)})
    load(model, dict(model=image), tmp_path / 'image.pt')
    expected = ref['expected_from_image']
    own = model.backbone.state_dict()
    assert relative_error(own['pos_embed'], expected['pos_embed']) < 1e-6
    assert relative_error(own['patch_embed.proj.weight'], expected['proj']) < 1e-6
    block = 'blocks.2.mlp.fc1.weight'
    assert torch.equal(own[block], ref['checkpoint']['model'][block])


@pytest.mark.parametrize('path', VIDEO_FILES)
def test_twice_the_frames_and_a_chosen_few_of_the_classes(path, tmp_path):
    ref = torch.load(path, weights_only=True)
    rows = [1, 4, 6, 8]
    np.save(tmp_path / 'rows.npy', np.array(rows))
    ref['config']['num_classes'] = len(rows)
    model = build(ref, 'eva_g_k400', 2, class_rows=str(tmp_path / 'rows.npy'))
    load(model, ref['checkpoint'], tmp_path / 'published.pth')
    expected = ref['expected_pos_embed_double_frames']
    assert relative_error(model.backbone.pos_embed, expected) < 1e-6
    published = ref['checkpoint']['model']
    assert torch.equal(model.cls_head.fc_cls.weight, published['head.weight'][rows])
    assert torch.equal(model.cls_head.fc_cls.bias, published['head.bias'][rows])
    assert torch.equal(model.cls_head.fc_norm.weight, published['fc_norm.weight'])
