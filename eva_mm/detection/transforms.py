"""Large-scale jitter as in the published detector training.

Source: github.com/baaivision/EVA, EVA-01/det/detectron2/data/transforms/augmentation_impl.py
(ResizeScale, FixedSizeCrop) and dataset_mapper.py; the polygon clipping is fvcore's
CropTransform. Coordinates are x, y in pixels; images are H, W, C, uint8.

The published test-time resize needs nothing of our own: mmdet's ``ResizeShortestEdge`` with
``scale=max_size`` and ``backend='pillow'`` is it (``Resize(keep_ratio=True)`` rounds a few
sizes to one pixel more).
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import shapely
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from PIL import Image

from .drafts import DraftImage

Window = tuple[int, int, int, int]  # x1, y1, x2, y2
PER_INSTANCE_KEYS = ('gt_bboxes_labels', 'gt_ignore_flags', 'gt_instances_ids')


def resize_and_cut(image: np.ndarray, size: tuple[int, int], window: Window) -> np.ndarray:
    """Resizes with an antialiased bilinear filter and cuts a window out.

    PyTorch's filter is PIL's, several times faster. Its weights have fewer bits, and both round
    after either pass: where they differ, it is by one grey level, by two at the very most.

    Args:
        image: (H, W, C) or (H, W), uint8.
        size: (width, height) of the resized image in pixels.
        window: x1, y1, x2, y2 in the resized image; it may exceed it right and below.

    Returns:
        (h, w, C) or (h, w), uint8. Colours lie in planes, as a network wants them: packing such
        an image is no second copy.
    """
    pixels = image.reshape(*image.shape[:2], -1)
    # PIL's images become BGR by a view, which is slow to copy; planes are put in order at the end.
    backwards = pixels[..., ::-1].flags.c_contiguous
    pixels = pixels[..., ::-1] if backwards else np.ascontiguousarray(pixels)
    planes = _resize(pixels, size, window[2:])
    x1, y1, x2, y2 = window
    cut = np.ascontiguousarray(planes[:: -1 if backwards else 1, y1:y2, x1:x2])
    return cut.transpose(1, 2, 0) if image.ndim == 3 else cut[0]


def _resize(pixels: np.ndarray, size: tuple[int, int], ends: tuple[int, int]) -> np.ndarray:
    """Resizes (H, W, C), contiguous, to ``size``, where only what lies before ``ends`` matters.

    Returns:
        (C, h, w): at least the pixels before ``ends``.
    """
    height, width = pixels.shape[:2]
    used = _used(width, size[0], ends[0]), _used(height, size[1], ends[1])
    factors = [new / old for new, old in zip(size, (width, height))]
    options: dict = dict(size=(size[1], size[0]))
    # PyTorch leaves out the pass along an axis of unchanged length, whatever its factor.
    if used != (width, height) and all(int(n * f) != n for n, f in zip(used, factors)):
        pixels = np.ascontiguousarray(pixels[: used[1], : used[0]])
        # Lengths are rounded down: a little more than the factor, for those that come out whole.
        options = dict(scale_factor=[factor * (1 + 1e-12) for factor in reversed(factors)])
    # As one row, since numpy may give an axis of length one a negative stride, which torch refuses.
    tensor = torch.from_numpy(pixels.ravel()).view(pixels.shape).permute(2, 0, 1)[None]
    return F.interpolate(tensor, mode='bilinear', antialias=True, **options)[0].numpy()


def _used(old: int, new: int, end: int) -> int:
    """Of the ``old`` pixels of an axis, how many the first ``end`` of ``new`` are made from."""
    scale = old / new
    return min(old, math.ceil((end + 0.5) * scale + max(scale, 1)) + 1)


def extents(points: np.ndarray, counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x, y, each (N, 2), of N runs of points.

    Args:
        points: (P, 2).
        counts: points of each run, all positive, P together.
    """
    starts = np.cumsum([0, *counts[:-1]])
    return np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)


def clip_polygons(polygons: Sequence[np.ndarray], window: Window) -> list[list[np.ndarray]]:
    """Intersects polygons with a window and moves them into the window's frame.

    Args:
        polygons: each flat x, y, shape (2P,). One of fewer than three points has no area.
        window: x1, y1, x2, y2.

    Returns:
        For each polygon the parts inside, each flat (2Q,) float64 and without a repeated last
        point; empty when nothing of positive area is left. Holes are lost, as in the published
        training.
    """
    rings = [np.asarray(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]
    # What is closed after two points has no area either, and shapely refuses it.
    sound = [len(r) > 3 or (len(r) == 3 and (r[0] != r[-1]).any()) for r in rings]
    chosen = np.flatnonzero(sound)
    found: list[list[np.ndarray]] = [[] for _ in rings]
    if not len(chosen):
        return found
    corner, far = np.array(window[:2], dtype=np.float64), np.array(window[2:])
    counts = [len(rings[i]) for i in chosen]
    low, high = extents(np.concatenate([rings[i] for i in chosen]), counts)
    near = ((high > corner) & (low < far)).all(axis=1)
    inside = ((low >= corner) & (high <= far)).all(axis=1)
    chosen, inside = chosen[near], inside[near]
    shapes = _polygons([rings[i] for i in chosen])
    # Most polygons end here: clipping would return the same area, only slower.
    whole = inside & shapely.is_valid(shapes)
    for i in chosen[whole]:
        found[i].append((rings[i] - corner).reshape(-1))
    for i, part in _intersections(shapes[~whole], window):
        found[chosen[~whole][i]].append((part - corner).reshape(-1))
    return found


def _polygons(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Polygons of shapely, (N,), of rings (P, 2) of at least three points."""
    if not len(rings):
        return np.empty(0, dtype=object)
    owners = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    return shapely.polygons(shapely.linearrings(np.concatenate(rings), indices=owners))


def _intersections(shapes: np.ndarray, window: Window) -> list[tuple[int, np.ndarray]]:
    """Parts of polygons inside a window: index of the polygon, outer ring (Q, 2) left open."""
    shapes = shapely.buffer(shapes, 0.0)  # repairs self-intersection, without which clipping fails
    owners = np.flatnonzero(shapely.is_valid(shapes))
    cut = shapely.intersection(shapes[owners], shapely.box(*window))
    parts, indices = shapely.get_parts(cut, return_index=True)
    of_area = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    of_area &= ~shapely.is_empty(parts) & shapely.is_valid(parts)
    rings = shapely.get_exterior_ring(parts[of_area])
    return [
        (owners[i], shapely.get_coordinates(ring)[:-1]) for i, ring in zip(indices[of_area], rings)
    ]


def polygon_boxes(instances: list[list[np.ndarray]]) -> torch.Tensor:
    """Tight boxes (N, 4) of polygon instances; an instance without parts gets negative sides."""
    boxes = np.tile(np.float32([0, 0, -1, -1]), (len(instances), 1))
    counts = np.array([sum(map(len, parts)) // 2 for parts in instances], dtype=int)
    some = counts > 0
    if some.any():
        points = np.concatenate(list(itertools.chain(*instances))).reshape(-1, 2)
        boxes[some, :2], boxes[some, 2:] = extents(points, counts[some])
    return torch.from_numpy(boxes)


def bitmap_boxes(bitmaps: Sequence[np.ndarray]) -> torch.Tensor:
    """Tight boxes (N, 4) of bitmaps, right and bottom edge exclusive; negative when empty."""
    boxes = torch.zeros(len(bitmaps), 4)
    for box, mask in zip(boxes, bitmaps):
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if len(columns):
            edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        else:
            edges = (0, 0, -1, -1)
        box[:] = torch.tensor(edges, dtype=torch.float32)
    return boxes


def nearest(old: int, new: int) -> np.ndarray:
    """Which of ``old`` pixels of an axis PIL takes for each of ``new``, (new,)."""
    row = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    return np.asarray(row.resize((new, 1), Image.Resampling.NEAREST))[0]


@TRANSFORMS.register_module()
class LargeScaleJitter(BaseTransform):
    """Resizes by a random factor, then cuts a fixed window out of what is larger.

    The image is made to fit ``scale`` x s, s uniform in ``ratio_range``, by
    :func:`resize_and_cut`. A window of size ``scale`` lies at one random fraction u of the
    excess, the same on both axes. Smaller images stay as they are: the data preprocessor
    pads after normalisation. Boxes become the tight boxes of the clipped masks (without masks:
    the clipped boxes); instances whose box has a side of at most ``min_side``, or whose mask is
    empty, are dropped. An image that loses all of them is kept. The flip comes before, as
    mmdet's ``RandomFlip``.

    Required keys: ``img``, an array or :class:`DraftImage`; optional ``gt_bboxes``, ``gt_masks``,
    ``gt_bboxes_labels``, ``gt_ignore_flags``, ``gt_instances_ids``. Sets also ``img_shape``,
    ``scale_factor`` (w, h), ``keep_ratio``, ``homography_matrix``.

    Args:
        scale: (width, height) of the window in pixels.
        ratio_range: bounds of s.
        min_side: pixels.

    Raises:
        ValueError: a range or a size that is not positive.
        NotImplementedError: the sample carries ``gt_seg_map``.
    """

    def __init__(
        self,
        scale: tuple[int, int] = (1280, 1280),
        ratio_range: tuple[float, float] = (0.1, 2.0),
        min_side: float = 1e-5,
    ) -> None:
        if len(scale) != 2 or min(scale) <= 0:
            raise ValueError(f'scale is (width, height) in pixels, got {scale}')
        if not 0 < ratio_range[0] <= ratio_range[1]:
            raise ValueError(f'ratio_range is (low, high), 0 < low <= high, got {ratio_range}')
        self.scale = tuple(scale)
        self.ratio_range = tuple(ratio_range)
        self.min_side = min_side

    def transform(self, results: dict) -> dict:
        """Draws s, then u, and applies them."""
        scale_factor = np.random.uniform(*self.ratio_range)
        return self.apply(results, scale_factor, np.random.uniform())

    def apply(self, results: dict, scale_factor: float, crop_fraction: float) -> dict:
        """The deterministic part.

        Args:
            results: see the class.
            scale_factor: s, relative to ``scale``.
            crop_fraction: u in [0, 1].

        Returns:
            ``results``, changed in place.
        """
        if results.get('gt_seg_map') is not None:
            raise NotImplementedError('LargeScaleJitter does not transform gt_seg_map')
        old_size = np.array(results['img'].shape[1::-1])  # w, h
        size = self._resized(old_size, scale_factor)
        offset = np.round(np.maximum(size - self.scale, 0) * crop_fraction).astype(int)
        # The window may exceed the image: polygons are cut at the window, as published.
        window = (*offset.tolist(), *(offset + self.scale).tolist())

        self._image(results, size, window)
        self._record(results, size / old_size, offset)
        self._instances(results, size, window)
        return results

    def _resized(self, old_size: np.ndarray, scale_factor: float) -> np.ndarray:
        factor = np.min(np.multiply(self.scale, scale_factor) / old_size)
        return np.maximum(np.round(old_size * factor), 1).astype(int)

    @staticmethod
    def _image(results: dict, size: np.ndarray, window: Window) -> None:
        image, (width, height) = results['img'], size.tolist()
        cut = image.cut_draft((width, height), window) if isinstance(image, DraftImage) else None
        if cut is None:
            cut = resize_and_cut(np.asarray(image), (width, height), window)
        results['img'] = cut
        results['img_shape'] = cut.shape[:2]

    @staticmethod
    def _record(results: dict, ratio: np.ndarray, offset: np.ndarray) -> None:
        results['scale_factor'] = tuple(ratio.tolist())
        results['keep_ratio'] = True
        matrix = np.diag([*ratio, 1.0])
        matrix[:2, 2] = -offset
        before = results.get('homography_matrix', np.eye(3))
        results['homography_matrix'] = (matrix @ before).astype(np.float32)

    def _instances(self, results: dict, size: np.ndarray, window: Window) -> None:
        """Cuts masks, recomputes boxes and drops what vanished, in every per-instance key."""
        masks, boxes = results.get('gt_masks'), results.get('gt_bboxes')
        height, width = results['img_shape']
        if isinstance(masks, PolygonMasks):
            cut = self._cut_polygons(masks, size, window)
            tight = polygon_boxes(cut)
        elif isinstance(masks, BitmapMasks):
            cut = self._cut_bitmaps(masks, size, window)
            tight = bitmap_boxes(cut)
        elif boxes is not None:
            tight = self._clipped(boxes, results['scale_factor'], window[:2], (height, width))
        else:
            return
        keep = (tight[:, 2:] - tight[:, :2] > self.min_side).all(dim=1)
        if boxes is not None:
            plain = isinstance(boxes, np.ndarray)
            results['gt_bboxes'] = tight[keep].numpy() if plain else HorizontalBoxes(tight[keep])
        if masks is not None:
            kept = [mask for mask, kept in zip(cut, keep) if kept]
            results['gt_masks'] = type(masks)(kept, height, width)
        for key in PER_INSTANCE_KEYS:
            if key in results:
                results[key] = results[key][keep.numpy()]

    @staticmethod
    def _cut_polygons(masks: PolygonMasks, size: np.ndarray, window: Window) -> list:
        ratio = size / (masks.width, masks.height)
        # Annotations with whole coordinates are integer arrays, which would truncate.
        polygons = [
            np.asarray(points, dtype=np.float64).reshape(-1, 2) * ratio
            for points in itertools.chain(*masks.masks)
        ]
        found = iter(clip_polygons(polygons, window))
        return [
            list(itertools.chain(*itertools.islice(found, len(parts)))) for parts in masks.masks
        ]

    @staticmethod
    def _cut_bitmaps(masks: BitmapMasks, size: np.ndarray, window: Window) -> np.ndarray:
        x1, y1, x2, y2 = window
        columns = nearest(masks.width, int(size[0]))[x1:x2]
        rows = nearest(masks.height, int(size[1]))[y1:y2]
        return masks.masks[:, rows[:, None], columns].astype(np.uint8, copy=False)

    @staticmethod
    def _clipped(boxes, ratio: tuple, offset: tuple, shape: tuple[int, int]) -> torch.Tensor:
        tensor = boxes if isinstance(boxes, np.ndarray) else boxes.tensor.numpy()
        tensor = tensor * np.tile(ratio, 2) - np.tile(offset, 2)
        height, width = shape
        limits = np.array([width, height, width, height])
        return torch.from_numpy(np.clip(tensor, 0, limits)).float()

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(scale={self.scale}, ratio_range={self.ratio_range}, '
            f'min_side={self.min_side})'
        )
