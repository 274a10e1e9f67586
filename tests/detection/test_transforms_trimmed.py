"""The trimmed jitter against its plain form: whole image resized by PIL, then cut; one polygon
after the other through shapely."""

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from PIL import Image
from shapely import geometry

from eva_mm.detection.transforms import (
    LargeScaleJitter,
    bitmap_boxes,
    clip_polygons,
    polygon_boxes,
    resize_and_cut,
)


def plain_image(image, size, window):
    """The published way: PIL's bilinear filter, antialiased, on all of the image."""
    x1, y1, x2, y2 = window
    resized = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized)[y1:y2, x1:x2]


def plain_clip(points, window):
    points = np.reshape(np.asarray(points, dtype=np.float64), (-1, 2))
    if len(points) < 3 or (len(points) == 3 and (points[0] == points[-1]).all()):
        return []
    corner = np.array(window[:2], dtype=np.float64)
    polygon = geometry.Polygon(points)
    inside = (points >= corner).all() and (points <= window[2:]).all()
    if inside and polygon.is_valid:
        return [(points - corner).reshape(-1)]
    polygon = polygon.buffer(0.0)
    if not polygon.is_valid:
        return []
    clipped = polygon.intersection(geometry.box(*window))
    return [
        (np.asarray(part.exterior.coords)[:-1] - corner).reshape(-1)
        for part in getattr(clipped, 'geoms', [clipped])
        if isinstance(part, geometry.Polygon) and not part.is_empty and part.is_valid
    ]


def photo_like(rng, height, width):
    """Smooth colours with edges and some grain, as photos have them."""
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(float)
    image[height // 3 :, width // 2 :] *= 0.4
    return (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def orders(image):
    """Forms in which loaders and flips leave an array; the same pixels in each but for order."""
    return dict(
        contiguous=image,
        bgr_view=image[..., ::-1],
        flipped=image[:, ::-1],
        flipped_bgr_view=image[:, ::-1, ::-1],
        upside_down=image[::-1],
    )


@pytest.mark.parametrize(('height', 'width'), [(48, 64), (37, 101), (200, 33), (425, 640)])
def test_image_of_every_ratio_and_corner(height, width):
    rng = np.random.default_rng(height)
    image = photo_like(rng, height, width)
    side = min(1.3 * max(height, width), 400)
    differing, pixels = 0, 0
    for s in (0.1, 0.25, 0.5, 0.731, 1.0, 1.37, 2.0):
        size = tuple(np.maximum(np.round(np.array([width, height]) * s), 1).astype(int).tolist())
        for u in (0.0, 0.31, 1.0):
            x, y = (round(max(length - side, 0) * u) for length in size)
            window = (x, y, x + round(side), y + round(side))
            for name, view in orders(image).items():
                found = resize_and_cut(view, size, window)
                expected = plain_image(view, size, window)
                assert found.shape == expected.shape
                assert found.dtype == np.uint8
                difference = np.abs(found.astype(int) - expected)
                assert difference.max() <= 1, name
                differing += np.count_nonzero(difference)
                pixels += difference.size
    assert differing / pixels < 0.01


def test_noise_differs_by_two_levels_at_the_very_most():
    """The worst image there is: black and white pixels at random."""
    rng = np.random.default_rng(0)
    twos, pixels = 0, 0
    for _ in range(300):
        height, width, new_height, new_width = rng.integers(1, 200, 4).tolist()
        image = rng.choice(np.uint8([0, 255]), (height, width, 3))
        size, window = (new_width, new_height), (0, 0, new_width, new_height)
        found = resize_and_cut(image, size, window)
        difference = np.abs(found.astype(int) - plain_image(image, size, window))
        assert difference.max() <= 2
        twos += np.count_nonzero(difference == 2)
        pixels += difference.size
    assert twos / pixels < 1e-4


def test_what_is_cut_off_does_not_matter():
    """Only the pixels that the window needs are resized; the result is that of resizing all."""
    rng = np.random.default_rng(0)
    for _ in range(1500):
        height, width = rng.integers(1, 120, 2).tolist()
        near = rng.random() < 0.3  # lengths that nearly stay as they are
        factor = rng.uniform(0.98, 1.05) if near else np.exp(rng.uniform(-2, 1.5))
        size = tuple(max(round(length * factor), 1) for length in (width, height))
        x1, y1 = (rng.integers(length) for length in size)
        window = (x1, y1, x1 + rng.integers(1, 60), y1 + rng.integers(1, 60))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        whole = resize_and_cut(image, size, (0, 0, *size))
        cut = resize_and_cut(image, size, window)
        assert np.array_equal(cut, whole[y1 : window[3], x1 : window[2]]), (image.shape, size)


@pytest.mark.parametrize('shape', [(1, 1, 3), (1, 9, 3), (9, 1, 3), (2, 2, 3), (30, 20), (1, 1)])
@pytest.mark.parametrize('size', [(1, 1), (1, 5), (5, 1), (3, 2), (40, 40)])
def test_single_pixels_and_grey_images(shape, size):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    views = orders(image).values() if image.ndim == 3 else [image, image[:, ::-1]]
    for window in ((0, 0, 50, 50), (0, 0, 2, 1)):
        for view in views:
            found = resize_and_cut(view, size, window)
            expected = plain_image(view, size, window)
            assert found.shape == expected.shape
            assert np.abs(found.astype(int) - expected).max() <= 1


def test_packing_copies_nothing():
    """Planes: what PackDetInputs transposes is contiguous afterwards."""
    image = photo_like(np.random.default_rng(0), 40, 60)
    for view in orders(image).values():
        cut = resize_and_cut(view, (90, 60), (10, 5, 60, 45))
        assert cut.transpose(2, 0, 1).flags.c_contiguous
        assert cut.base is None or cut.base.nbytes == cut.nbytes, 'keeps no larger image alive'


def star(rng, centre, radius, points):
    angles = np.sort(rng.uniform(0, 2 * np.pi, points))
    radii = radius * rng.uniform(0.3, 1, points)
    return (centre + (radii * [np.cos(angles), np.sin(angles)]).T).ravel()


def any_polygon(rng):
    """Stars, tangles that intersect themselves, and degenerate ones, all about a window."""
    kind = rng.integers(8)
    if kind == 0:
        return rng.uniform(0, 100, 2 * rng.integers(3, 9))
    if kind == 1:
        return np.tile(rng.uniform(0, 80, 2), rng.integers(1, 5))  # one point, repeated
    if kind == 2:
        first = rng.uniform(0, 80, 2)
        return np.concatenate([first, rng.uniform(0, 80, 2), first])  # there and back
    if kind == 3:
        x, y, w, h = rng.integers(0, 80, 4)
        return np.array([x, y, x + w, y, x + w, y + h, x, y + h])  # whole numbers, often touching
    return star(rng, rng.uniform(-10, 110, 2), rng.uniform(2, 40), rng.integers(3, 40))


def test_polygons_all_at_once_are_as_one_by_one():
    rng = np.random.default_rng(0)
    window = (20, 10, 70, 50)
    polygons = [any_polygon(rng) for _ in range(1500)]
    found = clip_polygons(polygons, window)
    assert len(found) == len(polygons)
    for polygon, parts in zip(polygons, found):
        expected = plain_clip(polygon, window)
        assert len(parts) == len(expected)
        for part, reference in zip(parts, expected):
            assert part.dtype == np.float64
            np.testing.assert_array_equal(part, reference)
    counts = [len(parts) for parts in found]
    assert {0, 1, 2} <= set(counts), 'none, one and several parts must occur'


def test_no_polygons():
    assert clip_polygons([], (0, 0, 5, 5)) == []
    assert clip_polygons([np.array([1.0, 1, 2, 2])], (0, 0, 5, 5)) == [[]]
    far = np.array([10.0, 10, 20, 10, 20, 20])
    assert clip_polygons([far, far], (0, 0, 5, 5)) == [[], []]


def plain_jitter(results, scale, s, u):
    """All of the jitter as its rules read: image, polygons of each instance, boxes, what is kept"""
    height, width = results['img'].shape[:2]
    factor = min(scale[0] * s / width, scale[1] * s / height)
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    x, y = (int(np.round(max(new - limit, 0) * u)) for new, limit in zip(size, scale))
    window = (x, y, x + scale[0], y + scale[1])
    ratio = np.array(size) / (width, height)
    masks, boxes, labels = [], [], []
    for parts, label in zip(results['gt_masks'].masks, results['gt_bboxes_labels']):
        cut = [c for part in parts for c in plain_clip(np.reshape(part, (-1, 2)) * ratio, window)]
        if not cut:
            continue
        points = np.concatenate(cut).reshape(-1, 2)
        low, high = points.min(axis=0), points.max(axis=0)
        if ((high - low).astype(np.float32) > 1e-5).all():
            masks.append(cut)
            boxes.append([*low, *high])
            labels.append(label)
    return plain_image(results['img'], size, window), masks, boxes, labels


@pytest.mark.parametrize('seed', range(6))
def test_whole_jitter(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(40, 300, 2).tolist()
    jitter = LargeScaleJitter(scale=(160, 120))
    for _ in range(8):
        instances = [
            [
                star(rng, rng.uniform(0, 1, 2) * (width, height), rng.uniform(1, 60), 12)
                for _ in range(rng.integers(1, 4))
            ]
            for _ in range(rng.integers(0, 40))
        ]
        results = dict(
            img=photo_like(rng, height, width)[:, ::-1, ::-1],
            gt_masks=PolygonMasks(instances, height, width),
            gt_bboxes=HorizontalBoxes(torch.zeros(len(instances), 4)),
            gt_bboxes_labels=np.arange(len(instances)),
        )
        s, u = rng.uniform(0.1, 2), rng.uniform()
        image, masks, boxes, labels = plain_jitter(results, jitter.scale, s, u)
        out = jitter.apply(results, s, u)
        assert np.abs(out['img'].astype(int) - image).max() <= 1
        assert out['gt_bboxes_labels'].tolist() == labels
        expected = torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32)
        torch.testing.assert_close(out['gt_bboxes'].tensor, expected, rtol=0, atol=0)
        for found, reference in zip(out['gt_masks'].masks, masks, strict=True):
            for part, other in zip(found, reference, strict=True):
                np.testing.assert_array_equal(part, other)


def test_bitmaps_are_those_of_whole_resizing():
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = rng.integers(1, 90, 2).tolist()
        bitmaps = (rng.random((3, height, width)) < 0.3).astype(np.uint8)
        results = dict(
            img=np.zeros((height, width, 3), np.uint8), gt_masks=BitmapMasks(bitmaps, height, width)
        )
        s, u = rng.uniform(0.1, 2), rng.uniform()
        factor = 50 * s / max(height, width)
        size = max(round(width * factor), 1), max(round(height * factor), 1)
        x, y = (int(np.round(max(length - 50, 0) * u)) for length in size)
        expected = [
            np.asarray(Image.fromarray(b).resize(size, Image.Resampling.NEAREST))[
                y : y + 50, x : x + 50
            ]
            for b in bitmaps
        ]
        expected = [mask for mask in expected if mask.any()]
        out = LargeScaleJitter(scale=(50, 50)).apply(results, s, u)
        assert len(out['gt_masks']) == len(expected)
        for found, reference in zip(out['gt_masks'].masks, expected):
            assert np.array_equal(found, reference)


def test_tight_boxes_by_hand():
    instances = [
        [np.array([1.0, 2, 5, 2, 5, 9]), np.array([0.5, 4, 3, 4, 3, 7])],
        [],
        [np.array([7.0, 8, 9, 8, 9, 10.25])],
    ]
    assert polygon_boxes(instances).tolist() == [[0.5, 2, 5, 9], [0, 0, -1, -1], [7, 8, 9, 10.25]]
    assert polygon_boxes([]).shape == (0, 4)
    assert polygon_boxes([[], []]).tolist() == [[0, 0, -1, -1]] * 2
    assert bitmap_boxes(np.zeros((1, 4, 4), np.uint8)).tolist() == [[0, 0, -1, -1]]
