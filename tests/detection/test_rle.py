"""RLE made region by region, against pycocotools' encoder."""

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from eva_mm.detection.rle import encode_masks, encode_region
from eva_mm.detection.roi_head import paste_masks, paste_rle

SHAPE = (13, 9)


def reference(mask):
    rle = mask_utils.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return dict(size=list(rle['size']), counts=rle['counts'].decode())


REGIONS = {
    'inside': (2, 3, 4, 5),
    'left and top': (0, 0, 3, 6),
    'right and bottom': (5, 7, 9, 13),
    'full height, where columns meet': (2, 0, 6, 13),
    'whole image': (0, 0, 9, 13),
    'one pixel': (8, 12, 9, 13),
}


@pytest.mark.parametrize('name', REGIONS)
@pytest.mark.parametrize('density', [0.0, 0.3, 0.8, 1.0])
def test_region_equals_the_whole_images_encoding(name, density):
    x0, y0, x1, y1 = REGIONS[name]
    part = torch.rand(5, y1 - y0, x1 - x0, generator=torch.Generator().manual_seed(1)) < density
    whole = torch.zeros(5, *SHAPE, dtype=torch.bool)
    whole[:, y0:y1, x0:x1] = part
    expected = [reference(mask) for mask in whole]
    assert encode_region(part, (x0, y0), SHAPE) == expected
    assert encode_masks(whole) == expected


def test_no_masks():
    assert encode_masks(torch.zeros(0, *SHAPE, dtype=torch.bool)) == []
    # As on an accelerator, where all masks of a part are encoded together.
    assert encode_region(torch.zeros(0, *SHAPE, dtype=torch.bool), (0, 0), SHAPE) == []
    assert paste_rle(torch.zeros(0, 28, 28), torch.zeros(0, 4), SHAPE, 0.5) == []


def test_pasting_as_rle_equals_pasted_maps():
    """Boxes inside, over every border, and tiny ones."""
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(40, 28, 28, generator=generator)
    corners = torch.rand(40, 2, generator=generator) * 50
    sides = (
        torch.rand(40, 2, generator=generator)
        * torch.tensor([40.0, 2.0])[torch.arange(40) % 2][:, None]
    )
    boxes = torch.cat((corners, corners + sides), dim=1).clamp(max=60)
    encoded = paste_rle(probs, boxes, (60, 64), 0.5)
    maps = paste_masks(probs, boxes, (60, 64), 0.5)
    assert encoded == [reference(mask) for mask in maps]
    assert maps.any(dim=2).any(dim=1).sum() > 20  # the others hold no pixel's centre
