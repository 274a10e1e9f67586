"""Attention with relative positions against the explicit N x N form."""

import pytest
import torch

from eva_mm.rel_pos import decomposed_rel_pos_attention, relative_vectors

from .helpers import relative_error


def explicit_attention(q, k, v, table_h, table_w, grid, scale):
    """Every score and every bias written out, entry by entry of the definition."""
    h, w = grid
    rows = torch.arange(h * w) // w
    cols = torch.arange(h * w) % w
    dy = rows[:, None] - rows[None, :] + h - 1
    dx = cols[:, None] - cols[None, :] + w - 1
    bias_h = torch.einsum('bhqc,qkc->bhqk', q, table_h[dy])
    bias_w = torch.einsum('bhqc,qkc->bhqk', q, table_w[dx])
    scores = scale * (q @ k.transpose(-1, -2)) + bias_h + bias_w
    return scores.softmax(dim=-1) @ v


def random_inputs(grid, channels=12, dtype=torch.float32):
    torch.manual_seed(0)
    h, w = grid
    tensors = [torch.randn(2, 3, h * w, channels) for _ in range(3)]
    tensors += [torch.randn(2 * h - 1, channels), torch.randn(2 * w - 1, channels)]
    return [t.to(dtype).requires_grad_() for t in tensors]


@pytest.mark.parametrize('grid', [(4, 4), (5, 3), (2, 9), (1, 1), (1, 6)])
def test_equals_the_explicit_form_with_gradients(grid):
    inputs = random_inputs(grid)
    scale = 12**-0.5
    ours = decomposed_rel_pos_attention(*inputs, grid, scale)
    weights = torch.randn_like(ours)
    gradients = torch.autograd.grad((ours * weights).sum(), inputs)
    expected = explicit_attention(*inputs, grid, scale)
    reference = torch.autograd.grad((expected * weights).sum(), inputs)
    assert relative_error(ours, expected) < 1e-5
    for own, ref in zip(gradients, reference):
        assert (own - ref).norm() <= 1e-5 * ref.norm() + 1e-4


def test_bf16_is_as_near_to_the_exact_result_as_the_explicit_form():
    grid, scale = (6, 5), 12**-0.5
    exact = explicit_attention(*random_inputs(grid, dtype=torch.float64), grid, scale)
    inputs = random_inputs(grid, dtype=torch.bfloat16)
    ours = relative_error(decomposed_rel_pos_attention(*inputs, grid, scale), exact)
    explicit = relative_error(explicit_attention(*inputs, grid, scale), exact)
    assert ours < 1.5 * explicit


def test_relative_vectors_look_up_query_minus_key():
    table = torch.arange(5.0)[:, None]  # offsets -2 ... 2
    looked_up = relative_vectors(table, 3)[..., 0]
    assert looked_up.tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


def test_tables_of_another_grid_are_resized():
    table = torch.randn(7, 3)
    resized = torch.nn.functional.interpolate(
        table.T[None], size=11, mode='linear', align_corners=False
    )[0].T
    assert torch.allclose(relative_vectors(table, 6), relative_vectors(resized, 6), atol=1e-6)
