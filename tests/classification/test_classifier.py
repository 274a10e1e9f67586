"""The classifier: losses, probe, predictions, and which weights it takes."""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

import eva_mm.classification  # noqa: F401
from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.errors import InputError
from eva_mm.vit import EVAVisionTransformer

from ..helpers import load_config
from .small import TINY, shrink_classifier


def build(**kwargs):
    torch.manual_seed(0)
    kwargs = dict(dict(img_size=32, num_classes=5, size='giant', **TINY), **kwargs)
    model = MODELS.build(dict(type='EVAClassifier', **kwargs))
    # The published initial head is nearly zero, which hides what it is given.
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    return model


def batch(number=4):
    return torch.randn(number, 3, 32, 32), torch.arange(number) % 5


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.3])
def test_loss_is_the_published_label_smoothing(smoothing):
    model = build(label_smoothing=smoothing)
    image, label = batch()
    logits = model(image)
    expected = LabelSmoothingCrossEntropy(smoothing)(logits, label)
    torch.testing.assert_close(model(image, label, mode='loss')['loss'], expected)
    # By hand: (1 - s) nll + s mean(-log p).
    log_p = logits.log_softmax(1)
    by_hand = (1 - smoothing) * -log_p.gather(1, label[:, None])[:, 0] - smoothing * log_p.mean(1)
    torch.testing.assert_close(expected, by_hand.mean())


def test_soft_targets_are_not_smoothed_again():
    model = build(label_smoothing=0.3)
    image, _ = batch()
    target = torch.rand(4, 5).softmax(1)
    expected = SoftTargetCrossEntropy()(model(image), target)
    torch.testing.assert_close(model(image, target, mode='loss')['loss'], expected)


def test_loss_is_fp32_under_autocast():
    model = build()
    image, label = batch()
    with torch.autocast('cpu', torch.bfloat16):
        assert model(image).dtype == torch.bfloat16
        assert model(image, label, mode='loss')['loss'].dtype == torch.float32


def test_prediction_holds_what_the_batch_does():
    model = build().eval()
    image, label = batch(3)
    results = model(image, label, mode='predict', img_path=['a', 'b', 'c'])
    logits = model(image)
    for index, result in enumerate(results):
        torch.testing.assert_close(result['logits'], logits[index])
        assert result['label'] == label[index]
        assert result['img_path'] == 'abc'[index]
    assert set(model(image, mode='predict')[0]) == {'logits'}


def test_bad_arguments():
    with pytest.raises(InputError, match='num_classes=0'):
        build(num_classes=0)
    with pytest.raises(InputError, match='label_smoothing'):
        build(label_smoothing=1.0)
    with pytest.raises(InputError, match="pooling 'mean' or 'cls'"):
        build(pooling=None)
    model = build()
    with pytest.raises(InputError, match='labels'):
        model(batch()[0], mode='loss')
    with pytest.raises(InputError, match="got 'test'"):
        model(batch()[0], mode='test')


@pytest.mark.parametrize(
    ('key', 'value'),
    [('num_classes', 1000), ('label_smoothing', 0.3)],
    ids=['classes', 'smoothing'],
)
def test_mixing_that_contradicts_the_model(key, value):
    mixup = dict(mixup_alpha=0.8, num_classes=5, label_smoothing=0.1)
    arguments = dict(type='ClassificationDataPreprocessor', mixup=mixup)
    build(label_smoothing=0.1, data_preprocessor=arguments)
    mixup[key] = value
    with pytest.raises(InputError, match=rf'model\.{key} is .*mixup\.{key} is {value}'):
        build(label_smoothing=0.1, data_preprocessor=arguments)


def test_probe_learns_nothing_but_its_linear_layer():
    model = build(pooling='cls', linear_probe=True).train()
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        'head.1.weight',
        'head.1.bias',
    ]
    image, label = batch()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    feature = model.extract_feat(image)
    assert not feature.requires_grad
    model(image, label, mode='loss')['loss'].backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        'head.1.weight',
        'head.1.bias',
    }
    after = model.state_dict()
    # Statistics of the batch enter with mmengine's (torch's) momentum of 0.1.
    expected = 0.9 * before['head.0.running_mean'] + 0.1 * feature.mean(0)
    torch.testing.assert_close(after['head.0.running_mean'], expected)
    normed = (feature - feature.mean(0)) / (feature.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(
        model.head(feature), normed @ after['head.1.weight'].T + after['head.1.bias'],
        atol=1e-4, rtol=1e-4,
    )  # fmt: skip


def test_probe_starts_as_published():
    torch.manual_seed(0)
    model = MODELS.build(
        dict(type='EVAClassifier', size='tiny', img_size=32, num_classes=1000, linear_probe=True)
    )
    weight = model.head[1].weight
    assert float(weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not model.head[1].bias.any()
    assert {'head.0.running_mean', 'head.0.running_var', 'head.1.weight', 'head.1.bias'} <= set(
        model.state_dict()
    )


# ------------------------------------------------------------------------------------ checkpoints


@pytest.fixture
def pretrained(tmp_path):
    """What masked image modelling leaves: no head, a norm for every token, its own parts."""
    vit = EVAVisionTransformer('giant', img_size=32, pooling='cls', **TINY)
    weights = {k: torch.randn_like(v) for k, v in vit.state_dict().items()}
    extra = {
        'mask_token': torch.zeros(1, 1, 16),
        'lm_head.weight': torch.zeros(8, 16),
        'lm_head.bias': torch.zeros(8),
    }
    torch.save(dict(model={**weights, **extra}), tmp_path / 'mim.pt')
    return tmp_path / 'mim.pt', weights


def leaf_model(name, **sizes):
    model = MODELS.build(shrink_classifier(load_config(name, 'mmengine'), **sizes).model)
    model.init_weights()
    return model


def test_starts_from_pretraining(pretrained):
    path, weights = pretrained
    model = leaf_model('imagenet/eva_g_in21k_224')
    head = model.head.weight.clone()
    load_checkpoint(model, str(path))
    for name in ('blocks.1.attn.q_bias', 'pos_embed', 'cls_token', 'patch_embed.proj.weight'):
        torch.testing.assert_close(model.state_dict()[name], weights[name])
    torch.testing.assert_close(model.head.weight, head)
    assert (model.fc_norm.weight == 1).all()


def test_starts_from_a_classifier_of_other_classes_and_size(tmp_path):
    first = leaf_model('imagenet/eva_g_in21k_224', num_classes=7)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.normal_()
    torch.save(dict(module=first.state_dict()), tmp_path / 'in21k.pt')
    model = leaf_model('imagenet/eva_g_in1k_336', img_size=48)
    load_checkpoint(model, str(tmp_path / 'in21k.pt'))
    torch.testing.assert_close(model.fc_norm.weight, first.fc_norm.weight)
    torch.testing.assert_close(model.pos_embed[:, 0], first.pos_embed[:, 0])
    assert model.pos_embed.shape == (1, 1 + 36, 16)
    assert model.head.weight.std() < 1e-3  # initial


@pytest.mark.parametrize('name', ['imagenet/eva_clip_ft_224', 'imagenet/eva_clip_linear_224'])
def test_starts_from_the_image_tower_of_clip(tmp_path, name):
    tower = EVAVisionTransformer('giant', img_size=32, pooling='cls', num_classes=12, **TINY)
    weights = {f'visual.{k}': torch.randn_like(v) for k, v in tower.state_dict().items()}
    text = {'text.positional_embedding': torch.zeros(3, 3), 'logit_scale': torch.zeros(())}
    torch.save({**weights, **text}, tmp_path / 'clip.pt')
    model = leaf_model(name)
    load_checkpoint(model, str(tmp_path / 'clip.pt'))
    own = model.state_dict()
    torch.testing.assert_close(
        own['blocks.0.mlp.fc1.weight'], weights['visual.blocks.0.mlp.fc1.weight']
    )
    if 'linear' in name:
        torch.testing.assert_close(own['norm.bias'], weights['visual.norm.bias'])
        assert own['head.1.weight'].std() < 0.02


def test_a_test_refuses_weights_without_a_head(pretrained):
    cfg = shrink_classifier(load_config('imagenet/eva_g_in21k_224', 'mmengine'))
    model = MODELS.build(cfg.model)  # as a test does: no init_weights
    with pytest.raises(CheckpointMismatchError, match='head'):
        load_checkpoint(model, str(pretrained[0]))


def test_other_number_of_classes_is_told(tmp_path):
    other = leaf_model('imagenet/eva_g_in1k_336', num_classes=7)
    torch.save(dict(model=other.state_dict()), tmp_path / 'seven.pt')
    cfg = shrink_classifier(load_config('imagenet/eva_g_in1k_336', 'mmengine'))
    with pytest.raises(CheckpointMismatchError, match='model 5 x 16, checkpoint 7 x 16'):
        load_checkpoint(MODELS.build(cfg.model), str(tmp_path / 'seven.pt'))
