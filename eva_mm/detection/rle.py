"""COCO's run-length encoding of masks, made where the masks are.

COCO's encoder looks at every pixel of an image per mask. Here only the region of the mask is
looked at, and only the ends of its runs leave the device; the result is the same to the byte.
"""

import numpy as np
import torch
from pycocotools import mask as mask_utils
from torch import Tensor

MASKS_AT_ONCE = 32  # on an accelerator; bounds memory


def encode_region(masks: Tensor, corner: tuple[int, int], shape: tuple[int, int]) -> list[dict]:
    """Encode masks that are empty outside one region of their image.

    Args:
        masks: (n, h, w) bool, the region's pixels.
        corner: x and y of the region's first pixel.
        shape: height and width of the image.

    Returns:
        n compressed RLEs: ``size`` [height, width] and ``counts``, text.
    """
    (x, y), (height, width) = corner, shape
    n, h, w = masks.shape
    if not n:
        return []
    # Runs go down the columns. One more row ends every run in its column, unless columns meet.
    side = h if h == height else h + 1
    columns = masks.new_zeros((n, w * side + 2))
    columns[:, 1:-1].view(n, w, side)[..., :h] = masks.transpose(1, 2)
    which, ends = (columns[:, 1:] != columns[:, :-1]).nonzero(as_tuple=True)
    numbers = torch.bincount(which, minlength=n).cpu().numpy()
    ends = ends.cpu().numpy()
    ends = (ends // side + x) * height + ends % side + y
    return [_compress(part, height, width) for part in np.split(ends, np.cumsum(numbers)[:-1])]


def _compress(ends: np.ndarray, height: int, width: int) -> dict:
    """RLE of runs that end at these pixels, counted down the columns of the image."""
    counts = np.diff(ends, prepend=0, append=height * width)
    if counts[-1] == 0 and len(counts) > 1:
        counts = counts[:-1]
    size = [height, width]
    rle = mask_utils.frPyObjects(dict(size=size, counts=counts.tolist()), height, width)
    return dict(size=size, counts=rle['counts'].decode())


def encode_masks(masks: Tensor) -> list[dict]:
    """Encode masks (n, H, W) of an image, bool, on any device; see :func:`encode_region`."""
    shape = tuple(masks.shape[1:])
    if masks.device.type != 'cpu':
        return [
            rle for part in masks.split(MASKS_AT_ONCE) for rle in encode_region(part, (0, 0), shape)
        ]
    return [_encode_on_cpu(mask, shape) for mask in masks]


def _encode_on_cpu(mask: Tensor, shape: tuple[int, int]) -> dict:
    array = mask.numpy()
    rows = np.flatnonzero(array.any(axis=1))
    if not len(rows):
        return _compress(np.zeros(0, int), *shape)
    y0, y1 = rows[0], rows[-1] + 1
    columns = np.flatnonzero(array[y0:y1].any(axis=0))
    x0, x1 = columns[0], columns[-1] + 1
    return encode_region(mask[None, y0:y1, x0:x1], (int(x0), int(y0)), shape)[0]
