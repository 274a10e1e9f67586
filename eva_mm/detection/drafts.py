"""JPEG files that are decoded at a half, a quarter or an eighth of their size where that will do.

libjpeg leaves out the high frequencies of each 8 x 8 block instead of computing pixels that the
resizing would average away. Pixels change a little by it: an option, off by default.
"""

import copy
import io

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS
from mmengine import fileio
from PIL import ExifTags, Image, ImageOps

from eva_mm.errors import InputError

ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ALL, _REVERSED = slice(None), slice(None, None, -1)


class DraftImage:
    """An image that is decoded when it is known to which size it will be resized.

    In front of the jitter it stands in for the upright BGR array: it has ``shape``, ``ndim`` and
    ``dtype``, and takes note of flips (``np.flip``, reversed slices). Whatever else is done with
    it decodes it in full.

    Args:
        data: the file's content.

    Raises:
        OSError: it is no image.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._flip = (_ALL, _ALL)  # of rows, of columns
        with Image.open(io.BytesIO(data)) as image:
            self._rotated = image.getexif().get(ExifTags.Base.Orientation) in ROTATED
            width, height = image.size
        self.shape = (width, height, 3) if self._rotated else (height, width, 3)

    def __getitem__(self, index) -> 'DraftImage | np.ndarray':
        """A flipped draft, or pixels for any other index."""
        index = index if isinstance(index, tuple) else (index,)
        rows, columns, colours = (*index, _ALL, _ALL, _ALL)[:3]
        if len(index) > 3 or _kind(colours) != 1 or not (_kind(rows) and _kind(columns)):
            return np.asarray(self)[index]
        flipped = copy.copy(self)
        steps = (_kind(old) * _kind(new) for old, new in zip(self._flip, (rows, columns)))
        flipped._flip = tuple(_ALL if step == 1 else _REVERSED for step in steps)
        return flipped

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """All pixels, (H, W, 3) uint8 BGR, as mmcv's ``pillow`` backend reads them."""
        image = Image.open(io.BytesIO(self._data))
        if image.mode == 'RGB':  # mmcv does the same with one more copy, slow for large photos
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.array(image)[..., ::-1]
        else:
            pixels = mmcv.imfrombytes(self._data, backend='pillow')
        pixels = pixels[self._flip]
        return pixels if dtype is None else pixels.astype(dtype, copy=False)

    def cut_draft(
        self, size: tuple[int, int], window: tuple[int, int, int, int]
    ) -> np.ndarray | None:
        """Decodes in draft mode, resizes with PIL's bilinear filter and cuts a window out.

        Args:
            size: (width, height) of the resized image in pixels.
            window: x1, y1, x2, y2 in the resized image; it may exceed it right and below.

        Returns:
            (h, w, 3) uint8 BGR; None where the image is no JPEG, or ``size`` is more than half of
            it, so that draft mode saves nothing.
        """
        image = Image.open(io.BytesIO(self._data))
        stored = size[::-1] if self._rotated else size  # the file's frame, before rotation
        shrinks = min(old // new for old, new in zip(image.size, stored)) >= 2
        draft = image.draft(None, stored) if shrinks else None
        if draft is None:
            return None
        if image.mode != 'RGB':
            image = image.convert('RGB')
        # Of a width of 641, an eighth is 81 pixels wide and 80.125 of them show the image.
        image = image.resize(stored, Image.Resampling.BILINEAR, box=draft[1])
        x1, y1, x2, y2 = window
        pixels = np.array(ImageOps.exif_transpose(image))[self._flip]
        return pixels[y1:y2, x1:x2, ::-1]


def _kind(index) -> int:
    """1 for ``[:]``, -1 for ``[::-1]``, 0 for anything else."""
    if not isinstance(index, slice):
        return 0
    return 1 if index == _ALL else -1 if index == _REVERSED else 0


@TRANSFORMS.register_module()
class LoadDraftImage(LoadImageFromFile):
    """Opens an image and leaves it to :class:`LargeScaleJitter` at which size it is decoded.

    In place of ``LoadImageFromFile``, whose keys it sets, with ``img`` a :class:`DraftImage`.
    Flips may stand between it and the jitter; other transforms there must take what
    ``numpy.asarray`` accepts.

    Args:
        **kwargs: of ``LoadImageFromFile``; other colours or backends than BGR uint8 by
            ``'pillow'`` are refused.

    Raises:
        InputError: such an argument.
    """

    def __init__(self, **kwargs) -> None:
        kwargs.setdefault('imdecode_backend', 'pillow')
        wanted = dict(imdecode_backend='pillow', color_type='color', to_float32=False)
        for key, value in wanted.items():
            if kwargs.get(key, value) != value:
                raise InputError(
                    f'LoadDraftImage: {key} is {value!r}, got {kwargs[key]!r} (use '
                    f'LoadImageFromFile)'
                )
        super().__init__(**kwargs)

    def transform(self, results: dict) -> dict | None:
        """Sets ``img``, ``img_shape`` and ``ori_shape``, (H, W) of the upright image."""
        try:
            image = DraftImage(fileio.get(results['img_path'], backend_args=self.backend_args))
        except Exception:
            if self.ignore_empty:
                return None
            raise
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results
