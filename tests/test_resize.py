"""Resizing rules against torch's and SciPy's interpolation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eva_mm.resize import (
    GEOMETRIC_RATIO_DETECTOR,
    resize_matrix,
    resize_patch_kernel,
    resize_pos_embed,
    resize_rel_pos,
)


def scipy_geometric(table: np.ndarray, dst: int, ratio: float) -> np.ndarray:
    """The authors' construction: a SciPy cubic through geometrically placed rows."""
    interpolate = pytest.importorskip('scipy.interpolate')
    half = len(table) // 2
    distances = np.cumsum(ratio ** np.arange(half))
    knots = np.concatenate((-distances[::-1], [0], distances))
    spline = interpolate.interp1d(knots, table, kind='cubic', axis=0, fill_value='extrapolate')
    return spline(np.arange(-(dst // 2), dst // 2 + 1))


@pytest.mark.parametrize(('src', 'dst'), [(31, 39), (159, 191), (31, 25), (7, 13), (5, 3)])
def test_geometric_rule_of_the_detector(src, dst):
    table = torch.randn(src, 4, dtype=torch.float64)
    expected = scipy_geometric(table.numpy(), dst, GEOMETRIC_RATIO_DETECTOR)
    assert np.allclose(resize_rel_pos(table, dst, 'geometric_detector'), expected, atol=1e-10)


@pytest.mark.parametrize(('src', 'dst'), [(27, 55), (27, 39)])
def test_geometric_rule_with_searched_ratio(src, dst):
    """The ratio makes the outermost source row land on the outermost target."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (q ** (src // 2) - 1) / (q - 1) > dst // 2 else (q, high)
    table = torch.randn(src, 4, dtype=torch.float64)
    expected = scipy_geometric(table.numpy(), dst, q)
    assert np.allclose(resize_rel_pos(table, dst, 'geometric'), expected, atol=1e-4)
    assert np.allclose(resize_rel_pos(table, dst, 'geometric')[0], table[0], atol=1e-3)


@pytest.mark.parametrize(('src', 'dst'), [(5, 27), (7, 111), (5, 9), (9, 63)])
def test_geometric_rule_never_extrapolates_small_tables(src, dst):
    """A ratio of at most 1.5, as in BEiT's search, does not reach far enough for these."""
    table = torch.randn(src, 3, dtype=torch.float64)
    resized = resize_rel_pos(table, dst, 'geometric')
    torch.testing.assert_close(resized[[0, dst // 2, -1]], table[[0, src // 2, -1]])
    # By how much the most unlucky table may grow; extrapolated, 7 rows grow by thousands.
    assert resize_matrix('geometric', src, dst).abs().sum(dim=1).max() < 5


@pytest.mark.parametrize(('src', 'dst'), [(31, 39), (31, 25), (3, 9)])
def test_linear_rule(src, dst):
    table = torch.randn(src, 4, dtype=torch.float64)
    expected = F.interpolate(table.T[None], size=dst, mode='linear', align_corners=False)[0].T
    assert torch.allclose(resize_rel_pos(table, dst), expected, atol=1e-6)


GRIDS = [((14, 14), (80, 80)), ((16, 16), (14, 9)), ((2, 3), (5, 4))]


@pytest.mark.parametrize(('src', 'dst'), GRIDS)
def test_position_embedding_is_bicubic(src, dst):
    pos_embed = torch.randn(1, 1 + src[0] * src[1], 8)
    grid = pos_embed[0, 1:].T.reshape(1, 8, *src)
    expected = F.interpolate(grid, size=dst, mode='bicubic', align_corners=False)
    resized = resize_pos_embed(pos_embed, dst, source_size=src)
    assert torch.allclose(resized[0, 1:].T.reshape(1, 8, *dst), expected, atol=1e-5)
    assert torch.equal(resized[:, 0], pos_embed[:, 0])


def test_half_precision_is_resized_in_fp32_and_cast_back():
    pos_embed = torch.randn(1, 17, 8).half()
    resized = resize_pos_embed(pos_embed, (6, 6))
    exact = resize_pos_embed(pos_embed.float(), (6, 6))
    assert resized.dtype == torch.float16
    assert torch.equal(resized, exact.half())


def test_resizing_is_differentiable():
    table = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    resize_rel_pos(table, 9, 'geometric_detector').sum().backward()
    expected = resize_matrix('geometric_detector', 7, 9).sum(dim=0)
    assert torch.allclose(table.grad, expected[:, None].expand(7, 2))


def test_matrix_made_in_inference_mode_serves_training():
    with torch.inference_mode():
        resize_rel_pos(torch.randn(15, 2), 21)
    table = torch.randn(15, 2, requires_grad=True)
    resize_rel_pos(table, 21).sum().backward()
    assert table.grad is not None


def test_patch_kernel_is_plain_bicubic():
    weight = torch.randn(4, 3, 14, 14)
    expected = F.interpolate(weight, size=(16, 16), mode='bicubic', align_corners=False)
    assert torch.allclose(resize_patch_kernel(weight, 16), expected, atol=1e-5)


def test_errors_name_what_was_found():
    with pytest.raises(ValueError, match='15 patches is not a square grid'):
        resize_pos_embed(torch.randn(1, 16, 2), (3, 3))
    with pytest.raises(ValueError, match="unknown relative table rule 'cubic'"):
        resize_rel_pos(torch.randn(5, 2), 7, 'cubic')
    with pytest.raises(ValueError, match='odd number of rows, got 5 -> 8'):
        resize_rel_pos(torch.randn(5, 2), 8, 'geometric')
