"""Large-scale jitter as in the published detector training.

Source: github.com/baaivision/EVA, EVA-01/det/detectron2/data/transforms/augmentation_impl.py
(ResizeScale, FixedSizeCrop) and dataset_mapper.py; the polygon clipping is fvcore's
CropTransform. Coordinates are x, y in pixels; images are H, W, C, uint8.

The published test-time resize needs nothing of our own: mmdet's ``ResizeShortestEdge`` with
``scale=max_size`` and ``backend='pillow'`` is it (``Resize(keep_ratio=True)`` rounds a few
sizes to one pixel more).
"""

import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from shapely import geometry

Window = tuple[int, int, int, int]  # x1, y1, x2, y2
PER_INSTANCE_KEYS = ('gt_bboxes_labels', 'gt_ignore_flags', 'gt_instances_ids')


def clip_polygon(points: np.ndarray, window: Window) -> list[np.ndarray]:
    """Intersects a polygon with a window and moves it into the window's frame.

    Args:
        points: flat x, y of at least three points, shape (2P,).
        window: x1, y1, x2, y2.

    Returns:
        The parts inside, each flat (2Q,) float64 and without a repeated last point; empty when
        nothing of positive area is left. Holes are lost, as in the published training.
    """
    corner = np.array(window[:2], dtype=np.float64)
    points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    if len(points) < 4 and (points[0] == points[-1]).all():
        return []  # closed after two points: no area, and shapely refuses it
    polygon = geometry.Polygon(points)
    low, high = points.min(axis=0), points.max(axis=0)
    inside = (low >= corner).all() and (high <= window[2:]).all()
    if inside and polygon.is_valid:
        # Most polygons end here: clipping would return the same area, only slower.
        return [(points - corner).reshape(-1)]
    polygon = polygon.buffer(0.0)  # repairs self-intersection, without which clipping fails
    if not polygon.is_valid:
        return []
    clipped = polygon.intersection(geometry.box(*window))
    parts = getattr(clipped, 'geoms', [clipped])
    return [
        (np.asarray(part.exterior.coords)[:-1] - corner).reshape(-1)
        for part in parts
        if isinstance(part, geometry.Polygon) and not part.is_empty and part.is_valid
    ]


def polygon_boxes(instances: list[list[np.ndarray]]) -> torch.Tensor:
    """Tight boxes (N, 4) of polygon instances; an instance without parts gets negative sides."""
    boxes = torch.zeros(len(instances), 4)
    for box, parts in zip(boxes, instances):
        if not parts:
            box[2:] = -1
            continue
        points = np.concatenate(parts).reshape(-1, 2)
        box[:2] = torch.from_numpy(points.min(axis=0))
        box[2:] = torch.from_numpy(points.max(axis=0))
    return boxes


def bitmap_boxes(bitmaps: list[np.ndarray]) -> torch.Tensor:
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


@TRANSFORMS.register_module()
class LargeScaleJitter(BaseTransform):
    """Resizes by a random factor, then cuts a fixed window out of what is larger.

    The image is made to fit ``scale`` x s, s uniform in ``ratio_range``, with PIL's bilinear
    filter (antialiased). Then a window of size ``scale`` is placed at one random fraction u of
    the excess, the same on both axes. Smaller images stay as they are: the data preprocessor
    pads after normalisation. Boxes become the tight boxes of the clipped masks (without masks:
    the clipped boxes); instances whose box has a side of at most ``min_side``, or whose mask is
    empty, are dropped. An image that loses all of them is kept. The flip comes before, as
    mmdet's ``RandomFlip``.

    Required keys: ``img``; optional ``gt_bboxes``, ``gt_masks``, ``gt_bboxes_labels``,
    ``gt_ignore_flags``, ``gt_instances_ids``. Sets also ``img_shape``, ``scale_factor`` (w, h),
    ``keep_ratio``, ``homography_matrix``.

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
        image = mmcv.imresize(
            np.ascontiguousarray(results['img']), tuple(size.tolist()), backend='pillow'
        )
        x1, y1, x2, y2 = window
        results['img'] = np.ascontiguousarray(image[y1:y2, x1:x2])
        results['img_shape'] = results['img'].shape[:2]

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

        def cut(points: np.ndarray) -> list[np.ndarray]:
            # Annotations with whole coordinates are integer arrays, which would truncate.
            points = np.asarray(points, dtype=np.float64).reshape(-1, 2)
            return clip_polygon(points * ratio, window)

        return [[part for points in parts for part in cut(points)] for parts in masks.masks]

    @staticmethod
    def _cut_bitmaps(masks: BitmapMasks, size: np.ndarray, window: Window) -> list:
        x1, y1, x2, y2 = window
        shape = tuple(size.tolist())
        resized = (
            mmcv.imresize(mask.astype(np.uint8), shape, interpolation='nearest', backend='pillow')
            for mask in masks.masks
        )
        return [mask[y1:y2, x1:x2] for mask in resized]

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
