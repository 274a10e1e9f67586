"""ViT-Adapter: tables of relative positions, sizes, initial values and weights of pretraining."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import load_checkpoint

from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.errors import InputError
from eva_mm.resize import resize_pos_embed
from eva_mm.segmentation import EVAViTAdapter
from eva_mm.segmentation.rel_pos_bias import TableAttention, attention_bias, resize_bias_table
from eva_mm.vit import EVAVisionTransformer

SIZES = dict(embed_dim=32, depth=4, num_heads=4, mlp_dim=64)
TINY = dict(size='tiny', img_size=64, stem_channels=8, deform_num_heads=4, **SIZES)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


# ------------------------------------------------------------------------------------- tables


def beit_index(h: int, w: int) -> torch.Tensor:
    """Row of a table for each pair of tokens, pair by pair (arXiv 2106.08254's code, in words)."""
    offsets = (2 * h - 1) * (2 * w - 1)
    index = torch.empty(1 + h * w, 1 + h * w, dtype=torch.long)
    for q in range(h * w):
        for k in range(h * w):
            dy, dx = q // w - k // w, q % w - k % w
            index[1 + q, 1 + k] = (dy + h - 1) * (2 * w - 1) + dx + w - 1
    index[0, :], index[:, 0], index[0, 0] = offsets, offsets + 1, offsets + 2
    return index


@pytest.mark.parametrize('grid', [(3, 4), (4, 4), (1, 2)])
def test_bias_of_every_pair(grid):
    h, w = grid
    table = torch.randn((2 * h - 1) * (2 * w - 1) + 3, 5)
    expected = table[beit_index(h, w)].permute(2, 0, 1)
    assert torch.equal(attention_bias(table, grid), expected)


def test_attention_with_tables_equals_the_explicit_form():
    attention = randomised(TableAttention(32, 4, 'qv', (3, 4)))
    x = torch.randn(2, 13, 32)
    bias = torch.cat((attention.q_bias, torch.zeros(32), attention.v_bias))
    q, k, v = torch.nn.functional.linear(x, attention.qkv.weight, bias).split(32, dim=-1)
    q, k, v = (t.reshape(2, 13, 4, 8).transpose(1, 2) for t in (q, k, v))
    scores = (q * 8**-0.5) @ k.transpose(-2, -1)
    scores = scores + attention.relative_position_bias_table[beit_index(3, 4)].permute(2, 0, 1)
    expected = attention.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 13, 32))
    torch.testing.assert_close(attention(x, (3, 4)), expected, rtol=1e-5, atol=1e-6)


def geometric_places(source: int, target: int) -> np.ndarray:
    """Where the offsets of a table of ``source`` rows are put, by the published search."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (source // 2)) / (1 - ratio) > target // 2:
            high = ratio
        else:
            low = ratio
    distances = np.cumsum(ratio ** np.arange(source // 2))
    return np.concatenate((-distances[::-1], [0], distances))


@pytest.mark.parametrize(('source', 'target'), [(6, 8), (14, 20), (8, 6)])
def test_tables_are_resized_by_a_cubic_spline_over_both_axes(source, target):
    from scipy.interpolate import RectBivariateSpline

    rows, wanted = 2 * source - 1, 2 * target - 1
    table = torch.randn(rows**2 + 3, 2, dtype=torch.float64)
    resized = resize_bias_table(table, (source, source), (target, target))
    places, targets = geometric_places(rows, wanted), np.arange(wanted) - wanted // 2
    for head in range(2):
        values = table[:-3, head].reshape(rows, rows).numpy()
        spline = RectBivariateSpline(places, places, values, s=0)
        found = resized[:-3, head].reshape(wanted, wanted).numpy()
        np.testing.assert_allclose(found, spline(targets, targets), atol=1e-4)
    assert torch.equal(resized[-3:], table[-3:])


def test_tables_of_another_grid_are_resized_on_loading():
    small = randomised(TableAttention(32, 4, 'qv', (4, 4)))
    large = TableAttention(32, 4, 'qv', (6, 6))
    large.load_state_dict(small.state_dict())
    table = small.relative_position_bias_table
    expected = resize_bias_table(table, (4, 4), (6, 6))
    assert torch.equal(large.relative_position_bias_table, expected)


def test_new_tables_and_layer_scale_of_one_change_nothing():
    plain = EVAViTAdapter(**TINY).eval()
    with_tables = EVAViTAdapter(**TINY, relative_position_bias=True, layer_scale=1.0).eval()
    missing, unexpected = with_tables.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert {name.split('.', 2)[2] for name in missing} == {
        'attn.relative_position_bias_table',
        'gamma_1',
        'gamma_2',
    }
    image = torch.randn(1, 3, 64, 64)
    for a, b in zip(plain(image), with_tables(image)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize('tables', [False, True])
@pytest.mark.parametrize('size', [(64, 64), (96, 128)])
def test_four_maps_of_any_crop_that_32_divides(size, tables):
    model = randomised(EVAViTAdapter(**TINY, relative_position_bias=tables))
    shapes = [tuple(m.shape) for m in model(torch.randn(1, 3, *size))]
    assert shapes == [(1, 32, size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]


@pytest.mark.parametrize('size', [(64, 64), (96, 32), (128, 160)])
def test_positions_of_other_crops_are_bicubic(size):
    model = randomised(EVAViTAdapter(**TINY))
    image = torch.randn(1, 3, *size)
    grid = (size[0] // 16, size[1] // 16)
    tokens, cls_token, found = model._embed_apart(image)
    table = model.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    table = F.interpolate(table, grid, mode='bicubic', align_corners=False)
    expected = (model.patch_embed(image) + table).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    assert found == grid
    assert torch.equal(cls_token, model.cls_token)  # without a position, as published


def test_other_crops_are_refused():
    with pytest.raises(InputError, match=r'image of 64 x 80 pixels: .* 32 divides'):
        EVAViTAdapter(**TINY)(torch.randn(1, 3, 64, 80))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(patch_size=14), 'patch_size should be 16, got 14'),
        (dict(interaction_indexes=[[0, 1], [2, 3]]), '4 pairs'),
        (dict(interaction_indexes=[[0, 0], [1, 1], [3, 3], [2, 2]]), 'from 0 to 3'),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        EVAViTAdapter(**{**TINY, **options})


def test_published_shapes_of_the_giant():
    with torch.device('meta'):
        model = EVAViTAdapter('giant', drop_path_rate=0.5, relative_position_bias=True)
    assert model.pos_embed.shape == (1, 56 * 56 + 1, 1408)
    tables = {tuple(b.attn.relative_position_bias_table.shape) for b in model.blocks}
    assert tables == {(111 * 111 + 3, 16)}
    assert [list(group) for group in model.groups] == [
        list(range(start, start + 10)) for start in (0, 10, 20, 30)
    ]
    last = model.interactions[3]
    assert len(last.extractors) == 3
    assert last.extractor.attn.value_proj.weight.shape == (704, 1408)
    assert last.extractor.ffn.fc1.weight.shape == (352, 1408)
    assert last.injector.attn.sampling_offsets.weight.shape == (16 * 3 * 4 * 2, 1408)
    rates = [block.drop_path.rate for block in model.blocks]
    assert rates == pytest.approx([0.5 * i / 39 for i in range(40)])
    assert {e.drop_path.rate for i in model.interactions for e in i.extractors} == {0.5}


# ------------------------------------------------------------------------------------ weights


def test_nothing_is_injected_at_first():
    model = EVAViTAdapter(**TINY).eval()
    image = torch.randn(1, 3, 64, 64)
    x, cls_token, grid = model._embed_apart(image)
    x = torch.cat((cls_token, x), dim=1)
    for index in range(4):
        x = model.run_block(index, x, grid)
    expected = x[:, 1:].transpose(1, 2).reshape(1, 32, 4, 4)
    levels = torch.randn(1, 64 + 16 + 4, 32)
    taps, _, _ = model._interact(image, levels)
    torch.testing.assert_close(taps[-1], expected, rtol=1e-4, atol=1e-5)


def pretraining_weights(folder):
    pretrained = randomised(
        EVAVisionTransformer('tiny', img_size=224, patch_size=16, pooling=None, **SIZES)
    )
    weights = dict(pretrained.state_dict(), mask_token=torch.zeros(1, 1, 32))
    weights |= {'norm.weight': torch.ones(32), 'lm_head.bias': torch.zeros(8)}
    torch.save(dict(model=weights), folder / 'eva.pt')
    return str(folder / 'eva.pt'), weights


def test_weights_of_pretraining(tmp_path):
    file, weights = pretraining_weights(tmp_path)
    model = EVAViTAdapter(**TINY, relative_position_bias=True, layer_scale=1.0)
    load_checkpoint(model, file)
    own = model.state_dict()
    expected = resize_pos_embed(weights['pos_embed'], (4, 4))
    torch.testing.assert_close(own['pos_embed'], expected)
    for name in ('cls_token', 'blocks.3.attn.q_bias', 'patch_embed.proj.weight'):
        assert torch.equal(own[name], weights[name])


def test_weights_of_pretraining_without_a_block_are_refused(tmp_path):
    file, weights = pretraining_weights(tmp_path)
    kept = {k: v for k, v in weights.items() if not k.startswith('blocks.3.')}
    torch.save(dict(model=kept), file)
    with pytest.raises(CheckpointMismatchError, match=r'blocks\.3\.'):
        load_checkpoint(EVAViTAdapter(**TINY), file)
