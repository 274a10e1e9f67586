"""The asymmetric student of EVA-L: what is kept, what is scored, what is fixed."""

import pytest
import torch
import torch.nn.functional as F

from eva_mm.backbones import EVAViT
from eva_mm.errors import InputError
from eva_mm.pretraining.mae import sincos_pos_embed

from .small import GRID, PATCH, SIDE, build, random_batch

LEAF = 'eva_l_in21k'


@pytest.fixture
def model():
    return build(LEAF).eval()


def prepared(model, num_images=4):
    batch = model.data_preprocessor(random_batch(num_images))
    return batch['image'], batch['noise']


def test_keeps_the_patches_of_lowest_noise(model):
    image, noise = prepared(model)
    _, removed = model.predict_patches(image, noise=noise)
    assert model.num_kept == GRID * GRID // 4
    for row, gone in zip(noise, removed):
        assert int((~gone).sum()) == model.num_kept
        assert row[~gone].max() < row[gone].min()


def test_removed_pixels_do_not_reach_the_student(model):
    image, noise = prepared(model)
    expected, removed = model.predict_patches(image, noise=noise)
    pixels = F.interpolate(removed.view(-1, 1, GRID, GRID).float(), scale_factor=PATCH).bool()
    other = torch.randn_like(image)
    hidden, _ = model.predict_patches(torch.where(pixels, other, image), noise=noise)
    torch.testing.assert_close(hidden, expected)
    seen, _ = model.predict_patches(torch.where(pixels, image, other), noise=noise)
    assert not torch.allclose(seen, expected)


def test_predictions_are_in_row_major_order(model):
    """Moving an image's content and noise by one patch moves what is kept, and nothing else."""
    image, noise = prepared(model, 1)
    _, removed = model.predict_patches(image, noise=noise)
    shifted = noise.view(1, GRID, GRID).roll(1, dims=2).flatten(1)
    _, moved = model.predict_patches(image, noise=shifted)
    assert torch.equal(moved.view(GRID, GRID), removed.view(GRID, GRID).roll(1, dims=1))
    # The decoder's position, and not the order of the noise, says which patch is which.
    table = model.decoder_pos_embed.data.clone()
    model.decoder_pos_embed.data[:, 1 + 5] += 10
    changed, _ = model.predict_patches(image, noise=noise)
    model.decoder_pos_embed.data.copy_(table)
    expected, _ = model.predict_patches(image, noise=noise)
    difference = (changed - expected).norm(dim=-1)[0]
    assert int(difference.argmax()) == 5


def test_loss_is_over_removed_patches(model):
    image, noise = prepared(model)
    prediction, removed = model.predict_patches(image, noise=noise)
    features = model.teacher(image)
    expected = -F.cosine_similarity(prediction[removed], features[removed], dim=-1).mean()
    torch.testing.assert_close(model(image, noise=noise, mode='loss')['loss'], expected)
    rows = model(image, noise=noise, mode='predict')
    assert {row['num_patches'] for row in rows} == {GRID * GRID - model.num_kept}
    mean = sum(row['loss'] for row in rows) / len(rows)
    assert mean == pytest.approx(float(expected), rel=1e-5)


def test_positions_are_fixed_and_all_else_learns(model):
    image, noise = prepared(model)
    model.train()(image, noise=noise, mode='loss')['loss'].backward()
    still = {name for name, p in model.named_parameters() if p.grad is None}
    assert still == {'pos_embed', 'decoder_pos_embed'}
    assert model.pos_embed[0, 0].abs().sum() == 0  # of the class token


def test_sincos_positions():
    table = sincos_pos_embed(8, (2, 3))[0, 1:].double()
    # Row 1, column 2: column first; frequencies 1 and 1 / 100.
    x, y = torch.tensor(2.0), torch.tensor(1.0)
    expected = [f(v * w) for v in (x, y) for f in (torch.sin, torch.cos) for w in (1, 0.01)]
    torch.testing.assert_close(table[5], torch.stack(expected).double(), atol=1e-7, rtol=1e-6)
    with pytest.raises(ValueError, match='divisible by 4, got 6'):
        sincos_pos_embed(6, (2, 2))


def test_initialisation(model):
    weight = model.patch_embed.proj.weight
    bound = (6 / (weight[0].numel() + len(weight))) ** 0.5
    assert weight.abs().max() <= bound
    assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert all(block.attn.qkv.bias.abs().sum() == 0 for block in model.blocks)
    wide = build(LEAF, embed_dim=1024, depth=1, decoder_embed_dim=1024, decoder_depth=1)
    for token in (wide.cls_token, wide.mask_token):
        assert float(token.std()) == pytest.approx(0.02, rel=0.1)
        assert abs(float(token.mean())) < 0.003


def test_its_encoder_may_lack_a_key_bias():
    """As the sizes whose biases are EVA-g's have it."""
    model = build(LEAF, qkv_bias='qv')
    image, noise = prepared(model)
    model.train()(image, noise=noise, mode='loss')['loss'].backward()
    assert model.blocks[0].attn.q_bias.grad.abs().sum() > 0


def test_its_encoder_loads_into_the_plain_backbone(model, tmp_path):
    path = tmp_path / 'iter_9.pth'
    torch.save(dict(meta={}, state_dict=model.state_dict()), path)
    size = dict(embed_dim=32, depth=3, num_heads=2, mlp_dim=64, qkv_bias='full')
    backbone = EVAViT(
        'tiny',
        img_size=SIDE,
        patch_size=PATCH,
        **size,
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
    )
    backbone.init_weights()
    image, _ = prepared(model)
    expected = model.forward_features(image)[:, 1:].transpose(1, 2).reshape(4, 32, GRID, GRID)
    torch.testing.assert_close(backbone.eval()(image)[-1], expected)


def test_bad_input(model):
    image, noise = prepared(model)
    with pytest.raises(InputError, match="no 'noise'.*MaskNoise"):
        model(image, mode='loss')
    with pytest.raises(InputError, match=r'\(4, 9\) does not fit 4 images of 4 x 4'):
        model(image, noise=noise[:, :9], mode='loss')
    with pytest.raises(InputError, match='images of 70 x 56 px, expected 56 x 56 px'):
        model(torch.zeros(4, 3, 70, 56), noise=noise, mode='loss')
    with pytest.raises(InputError, match='mask_ratio 0.99 keeps 0 of 16'):
        build(LEAF, mask_ratio=0.99)
