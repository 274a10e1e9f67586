"""The 14 -> 16 px conversion of patch embedding and position embedding."""

import pytest
import torch

from eva_mm.resize import resize_patch_kernel, resize_pos_embed, square_side

from ..helpers import relative_error
from .reference import reference_files


@pytest.mark.parametrize('path', reference_files('patch14to16'))
def test_conversion(path):
    ref = torch.load(path, weights_only=True)
    kernel = resize_patch_kernel(ref['patch_weight_14'], ref['patch_weight_16'].shape[-1])
    assert relative_error(kernel, ref['patch_weight_16']) < 1e-4

    target = next(v for k, v in ref.items() if k.startswith('pos_embed_14'))
    source = next(v for k, v in ref.items() if k.startswith('pos_embed_16'))
    side = square_side(target.shape[1] - 1)
    assert relative_error(resize_pos_embed(source, (side, side)), target) < 1e-4
    # The class token's slot is copied, not interpolated.
    assert torch.equal(resize_pos_embed(source, (side, side))[:, 0], source[:, 0])
