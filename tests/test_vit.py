"""The core against the formula, against timm and against the published counts."""

import math

import pytest
import torch
import torch.nn.functional as F

from eva_mm.vit import (
    Attention,
    Block,
    DropPath,
    EVAVisionTransformer,
    get_size,
    merge_windows,
    partition_windows,
)

from .helpers import relative_error

TINY = dict(img_size=56, patch_size=14, embed_dim=32, depth=3, num_heads=4, mlp_dim=48)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every parameter drawn anew, zeros and ones of the start included."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


# Totals that the authors' training logs print (EVA-01/logs), and the encoder of EVA-L.
@pytest.mark.parametrize(
    ('size', 'options', 'count'),
    [
        ('giant', dict(img_size=336, num_classes=1000), 1_013_005_672),
        ('giant', dict(img_size=560, num_classes=1000), 1_014_447_464),
        ('giant', dict(img_size=224, num_classes=21841), 1_041_920_081),
        ('giant', dict(img_size=224, num_classes=1000), 1_012_555_112),
        ('large', dict(img_size=196, num_classes=1000), 304_142_312),
        ('large', dict(img_size=336, num_classes=1000), 304_531_432),
        ('large', dict(img_size=224, num_classes=21841), 325_565_777),
    ],
)
def test_published_parameter_counts(size, options, count):
    with torch.device('meta'):
        model = EVAVisionTransformer(size, **options)
    assert sum(p.numel() for p in model.parameters()) == count


def plain_attention(attn: Attention, x: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(C)) v, head by head, from the weights."""
    dim = x.shape[-1]
    width = dim // attn.num_heads
    if attn.q_bias is not None:
        bias = torch.cat((attn.q_bias, torch.zeros(dim), attn.v_bias))
    else:
        bias = attn.qkv.bias if attn.qkv.bias is not None else torch.zeros(3 * dim)
    q, k, v = (x @ attn.qkv.weight.T + bias).split(dim, dim=-1)
    heads = []
    for h in range(attn.num_heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / math.sqrt(width)
        heads.append(scores.softmax(dim=-1) @ v[..., part])
    return torch.cat(heads, dim=-1) @ attn.proj.weight.T + attn.proj.bias


@pytest.mark.parametrize('qkv_bias', ['qv', 'full', 'none'])
def test_attention_is_the_formula(qkv_bias):
    attn = randomized(Attention(32, 4, qkv_bias))
    x = torch.randn(2, 17, 32)
    assert relative_error(attn(x), plain_attention(attn, x)) < 1e-6


def test_key_has_no_bias_in_qv_mode():
    names = {name for name, _ in Attention(32, 4, 'qv').named_parameters()}
    assert names == {'q_bias', 'v_bias', 'qkv.weight', 'proj.weight', 'proj.bias'}


@pytest.mark.parametrize('timm_name', ['eva_giant_patch14_224', 'eva_large_patch14_196'])
def test_same_outputs_as_timm(timm_name):
    """timm's model of reduced depth and our core, from the same random weights."""
    timm = pytest.importorskip('timm')
    theirs = randomized(timm.create_model(timm_name, depth=2, num_classes=11)).eval()
    state = theirs.state_dict()
    state = {k: v for k, v in state.items() if not k.endswith('k_bias')}
    size = 'giant' if 'giant' in timm_name else 'large'
    ours = EVAVisionTransformer(size, img_size=int(timm_name[-3:]), depth=2, num_classes=11).eval()
    ours.load_state_dict(state)
    image = torch.randn(1, 3, int(timm_name[-3:]), int(timm_name[-3:]))
    with torch.no_grad():
        assert relative_error(ours(image), theirs(image)) < 1e-5


def test_mean_pooling_is_norm_of_mean_and_ignores_the_class_token():
    model = randomized(EVAVisionTransformer('tiny', **TINY, num_classes=5))
    tokens = torch.randn(2, 17, 32)
    mean = tokens[:, 1:].mean(dim=1)
    expected = F.layer_norm(mean, (32,), model.fc_norm.weight, model.fc_norm.bias, 1e-6)
    assert torch.allclose(model.pool(tokens), expected, atol=1e-6)
    assert not hasattr(model.norm, 'weight')


def test_class_token_pooling_takes_the_normalised_class_token():
    model = randomized(EVAVisionTransformer('tiny', **TINY, num_classes=5, pooling='cls'))
    image = torch.randn(2, 3, 56, 56)
    raw, grid = model.embed(image)
    for index in range(3):
        raw = model.run_block(index, raw, grid)
    assert torch.allclose(model(image), model.head(model.norm(raw[:, 0])), atol=1e-5)


def test_stop_gradient_at_the_patch_embedding():
    for stop in (False, True):
        model = EVAVisionTransformer('tiny', **TINY, num_classes=5, stop_grad_patch_embed=stop)
        model(torch.randn(1, 3, 56, 56)).sum().backward()
        assert (model.patch_embed.proj.weight.grad is None) is stop
        assert model.pos_embed.grad is not None


def test_activation_checkpointing_changes_nothing():
    plain = randomized(EVAVisionTransformer('tiny', **TINY, num_classes=5))
    saving = EVAVisionTransformer('tiny', **TINY, num_classes=5, activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 56, 56)
    for model in (plain, saving):
        model.train()(image).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters()):
        assert torch.equal(a.grad, b.grad), name


def test_activation_checkpointing_saves_memory():
    """Fewer tensors wait for the backward pass."""

    def saved(checkpointing: bool) -> int:
        model = EVAVisionTransformer('tiny', **TINY, activation_checkpointing=checkpointing)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            model.train()(torch.randn(4, 3, 56, 56))
        return sum(sizes)

    assert saved(True) < saved(False) / 2


def test_intermediates_are_the_blocks_outputs():
    model = randomized(EVAVisionTransformer('tiny', **TINY))
    image = torch.randn(2, 3, 56, 28)
    outputs = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda m, a, out, i=index: outputs.__setitem__(i, out))
    last, first = model.forward_intermediates(image, [-1, 0])
    assert last.shape == (2, 32, 4, 2)
    assert torch.equal(last.flatten(2).transpose(1, 2), outputs[2][:, 1:])
    assert torch.equal(first.flatten(2).transpose(1, 2), outputs[0][:, 1:])
    with pytest.raises(IndexError, match='depth of 3'):
        model.forward_intermediates(image, [3])


def test_initialisation():
    model = EVAVisionTransformer('tiny', num_classes=10, depth=4, init_std=0.015, init_cutoff=0.015)
    block = model.blocks[3]
    assert block.attn.qkv.weight.abs().max() <= 0.015
    # A normal cut at one standard deviation has 0.54 of it left.
    assert float(block.mlp.fc1.weight.std()) == pytest.approx(0.54 * 0.015, rel=0.02)
    for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
        assert float(weight.std()) == pytest.approx(0.54 * 0.015 / math.sqrt(8), rel=0.03)
    assert model.head.weight.abs().max() <= 0.015 * 0.001
    assert torch.count_nonzero(block.attn.q_bias) == 0


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop = DropPath(0.25).train()
    x = torch.ones(4000, 3, 2)
    out = drop(x)
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(out.mean()) == pytest.approx(1, abs=0.05)
    assert drop.eval()(x) is x
    drop.train().rate = 0.0
    assert drop(x) is x
    drop.rate = 0.9
    assert float((drop(x) > 0).float().mean()) == pytest.approx(0.1, abs=0.03)
    with pytest.raises(ValueError, match=r'in \[0, 1\), got 1'):
        drop.rate = 1


def test_drop_path_grows_linearly():
    model = EVAVisionTransformer('tiny', depth=5, drop_path_rate=0.4)
    rates = [block.drop_path.rate for block in model.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize('grid', [(8, 8), (7, 5), (3, 9), (1, 1)])
def test_windows_and_back(grid):
    x = torch.randn(2, grid[0] * grid[1], 6)
    windows, padded = partition_windows(x, grid, 4)
    assert windows.shape[1] == 16
    assert len(windows) == 2 * (padded[0] // 4) * (padded[1] // 4)
    merged = merge_windows(windows, padded, grid, 4)
    assert torch.equal(merged.reshape(x.shape), x)
    if padded == grid:
        assert merged.data_ptr() == windows.data_ptr(), 'a copy'
    # The first window holds the top-left corner, zeros where the grid ends.
    corner = torch.zeros(4, 4, 6)
    h, w = min(4, grid[0]), min(4, grid[1])
    corner[:h, :w] = x[0].reshape(*grid, 6)[:h, :w]
    assert torch.equal(windows[0], corner.reshape(16, 6))


def test_window_block_attends_inside_windows_only():
    block = randomized(Block(16, 2, 32, window_size=2))
    x = torch.randn(1, 16, 16)
    changed = x.clone()
    changed[0, 0] += torch.randn(16)
    touched = (block(x, (4, 4)) - block(changed, (4, 4))).abs().sum(-1)[0].reshape(4, 4) > 1e-6
    assert touched[:2, :2].all()
    assert not touched[2:].any()
    assert not touched[:, 2:].any()


@pytest.mark.parametrize('grid', [(4, 4), (3, 5)])
def test_window_block_drops_its_branch_for_whole_samples(grid):
    """Windows of one sample are together, with padding and without."""
    block = randomized(Block(16, 2, 32, window_size=2, drop_path=0.5, layer_scale=1.0))
    torch.nn.init.zeros_(block.gamma_2)  # of the MLP
    x = torch.randn(40, grid[0] * grid[1], 16)
    branch = block.eval()(x, grid) - x
    torch.manual_seed(0)
    scaled = (block.train()(x, grid) - x).flatten(1)
    kept = scaled.abs().sum(dim=1) > 0
    assert 5 < kept.sum() < 35
    torch.testing.assert_close(scaled[kept], 2 * branch.flatten(1)[kept], rtol=1e-4, atol=1e-5)


def test_position_embedding_of_another_grid_is_resized_on_loading():
    small = randomized(EVAVisionTransformer('tiny', **TINY))
    large = EVAVisionTransformer('tiny', **{**TINY, 'img_size': 84})
    large.load_state_dict(small.state_dict())
    grid = small.pos_embed[0, 1:].T.reshape(1, 32, 4, 4)
    expected = F.interpolate(grid, size=(6, 6), mode='bicubic', align_corners=False)
    own = large.pos_embed[0, 1:].T.reshape(1, 32, 6, 6)
    assert torch.allclose(own, expected, atol=1e-6)
    assert torch.equal(large.pos_embed[:, 0], small.pos_embed[:, 0])


def test_layer_depth():
    model = EVAVisionTransformer('tiny', depth=3)
    expected = {
        'backbone.cls_token': 0,
        'backbone.pos_embed': 0,
        'backbone.patch_embed.proj.bias': 0,
        'backbone.blocks.0.norm1.weight': 1,
        'backbone.blocks.2.mlp.fc2.bias': 3,
        'backbone.fc_norm.weight': 4,
        'neck.anything': 4,
    }
    for name, depth in expected.items():
        assert model.get_layer_depth(name, 'backbone.') == (depth, 5), name


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="unknown ViT size 'huge'.*giant"):
        get_size('huge')
    with pytest.raises(ValueError, match='embed_dim 30 is not divisible by 4'):
        get_size('tiny', embed_dim=30, num_heads=4)
    with pytest.raises(ValueError, match='57 x 56 pixels.*14 px'):
        EVAVisionTransformer('tiny', **TINY)(torch.randn(1, 3, 57, 56))
    with pytest.raises(ValueError, match="pooling must be 'mean'"):
        EVAVisionTransformer('tiny', pooling='max')


@pytest.mark.parametrize('chosen', [[1], [0, 1]])
def test_chosen_blocks_alone_are_recomputed(chosen):
    plain = randomized(EVAVisionTransformer('tiny', **TINY, num_classes=5))
    saving = EVAVisionTransformer('tiny', **TINY, num_classes=5, activation_checkpointing=chosen)
    saving.load_state_dict(plain.state_dict())
    calls = []
    for index, block in enumerate(saving.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    image = torch.randn(2, 3, 56, 56)
    for model in (plain, saving):
        model.train()(image).square().sum().backward()
    assert [calls.count(index) for index in range(len(saving.blocks))] == [
        2 if index in chosen else 1 for index in range(len(saving.blocks))
    ]
    for (name, a), b in zip(plain.named_parameters(), saving.parameters()):
        assert torch.equal(a.grad, b.grad), name


def test_a_block_to_recompute_beyond_the_depth_is_refused():
    with pytest.raises(ValueError, match='exceeds a depth of'):
        EVAVisionTransformer('tiny', **TINY, activation_checkpointing=[99])


def test_an_image_size_that_patches_do_not_divide_is_refused():
    for img_size in (60, (56, 60)):
        with pytest.raises(ValueError, match='x 60 is not divisible into patches of 14 px'):
            EVAVisionTransformer('tiny', **{**TINY, 'img_size': img_size})
