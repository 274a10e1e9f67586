"""Large-scale jitter by hand, polygon clipping, and the published test-time resize."""

import mmcv
import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.registry import init_default_scope
from PIL import Image
from shapely import geometry

from eva_mm.detection.transforms import LargeScaleJitter, clip_polygons


def sample(polygons, height=60, width=100, masks=True):
    """A random image with one instance per polygon list, as LoadAnnotations leaves it."""
    rng = np.random.default_rng(0)
    results = dict(img=rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    parts = [[np.asarray(part) for part in instance] for instance in polygons]
    points = [np.concatenate(instance).reshape(-1, 2) for instance in parts]
    boxes = [[*p.min(0), *p.max(0)] for p in points]
    results['gt_bboxes'] = HorizontalBoxes(np.array(boxes, dtype=np.float32).reshape(-1, 4))
    results['gt_bboxes_labels'] = np.arange(len(parts))
    results['gt_ignore_flags'] = np.zeros(len(parts), dtype=bool)
    if masks:
        results['gt_masks'] = PolygonMasks(parts, height, width)
    return results


def rectangle(x1, y1, x2, y2):
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def test_sizes_offset_and_pixels_by_hand():
    """60 x 100 to fit 40 x 40 times 2: factor 0.8, 48 x 80; excess 8 and 40, u = 0.3125."""
    results = sample([[rectangle(30, 10, 50, 20)]])
    resized = Image.fromarray(results['img']).resize((80, 48), Image.Resampling.BILINEAR)
    out = LargeScaleJitter(scale=(40, 40)).apply(results, 2.0, 0.3125)
    # round(8 * 0.3125) = round(2.5) = 2 (half to even), round(40 * 0.3125) = round(12.5) = 12
    expected = np.asarray(resized).astype(int)[2:42, 12:52]
    assert np.abs(out['img'] - expected).max() <= 1  # noise, where rounding shows most
    assert out['img_shape'] == (40, 40)
    assert out['scale_factor'] == (0.8, 0.8)
    expected = [[24 - 12, 8 - 2, 40 - 12, 16 - 2]]
    torch.testing.assert_close(out['gt_bboxes'].tensor, torch.tensor(expected).float())
    corner = out['homography_matrix'] @ [50, 20, 1]
    assert corner[:2] == pytest.approx([28, 14])


def test_small_images_are_neither_cropped_nor_padded():
    out = LargeScaleJitter(scale=(200, 200)).apply(sample([[rectangle(30, 10, 50, 20)]]), 0.5, 0.9)
    assert out['img'].shape == (60, 100, 3)
    assert (out['gt_masks'].height, out['gt_masks'].width) == (60, 100)
    assert out['gt_bboxes'].tensor.tolist() == [[30, 10, 50, 20]]


def test_window_need_not_be_square():
    out = LargeScaleJitter(scale=(50, 30)).apply(sample([]), 2.0, 1.0)
    assert out['img'].shape == (30, 50, 3)


def test_instances_are_clipped_tightened_and_dropped_in_step():
    lobe_outside = [rectangle(2, 2, 10, 10), rectangle(80, 2, 90, 50)]
    results = sample(
        [
            lobe_outside,  # its second part falls outside: the box tightens
            [rectangle(70, 5, 95, 50)],  # vanishes
            [[10, 10, 90, 10, 90, 50]],  # a triangle cut at the right border
            [rectangle(60, 5, 90, 50)],  # touches the border only: no area left
        ]
    )
    results['gt_instances_ids'] = np.array([11, 12, 13, 14])
    out = LargeScaleJitter(scale=(60, 60)).apply(results, 100 / 60, 0.0)  # identity, left 60 px
    assert out['gt_instances_ids'].tolist() == [11, 13]
    assert out['gt_bboxes_labels'].tolist() == [0, 2]
    assert len(out['gt_ignore_flags']) == len(out['gt_masks']) == 2
    # The triangle's lower edge runs from (10, 10) to (90, 50): at x = 60 it is at y = 35.
    torch.testing.assert_close(
        out['gt_bboxes'].tensor, torch.tensor([[2.0, 2, 10, 10], [10, 10, 60, 35]])
    )
    assert out['gt_masks'].areas == pytest.approx([64, 625])


def test_image_without_remaining_instances_is_kept():
    init_default_scope('mmdet')
    out = LargeScaleJitter(scale=(40, 40)).apply(sample([[rectangle(95, 55, 99, 59)]]), 2.0, 0.0)
    assert len(out['gt_bboxes']) == len(out['gt_masks']) == len(out['gt_bboxes_labels']) == 0
    packed = PackDetInputs(meta_keys=('img_shape',))(out)['data_samples']
    assert packed.gt_instances.bboxes.tensor.shape == (0, 4)
    assert packed.img_shape == (40, 40)


def test_integer_polygons_are_not_truncated():
    results = sample([[np.array(rectangle(11, 11, 21, 21))]])
    assert results['gt_masks'].masks[0][0].dtype.kind == 'i'
    out = LargeScaleJitter(scale=(100, 100)).apply(results, 0.25, 0.0)
    assert out['gt_bboxes'].tensor.tolist() == [[2.75, 2.75, 5.25, 5.25]]


def test_boxes_without_masks_are_clipped_to_the_image():
    results = sample([[rectangle(50, 10, 90, 20)], [rectangle(70, 1, 80, 9)]], masks=False)
    out = LargeScaleJitter(scale=(60, 60)).apply(results, 100 / 60, 0.0)
    assert out['gt_bboxes'].tensor.tolist() == [[50, 10, 60, 20]]
    assert out['gt_bboxes_labels'].tolist() == [0]


def test_plain_array_boxes_stay_arrays():
    results = sample([[rectangle(50, 10, 90, 20)]])
    results['gt_bboxes'] = results['gt_bboxes'].numpy()
    out = LargeScaleJitter(scale=(60, 60)).apply(results, 100 / 60, 0.0)
    assert isinstance(out['gt_bboxes'], np.ndarray)
    assert out['gt_bboxes'].tolist() == [[50, 10, 60, 20]]


def test_bitmaps_born_from_rle():
    """Crop and tight boxes of bitmaps, right and bottom edge exclusive."""
    results = sample([[rectangle(50, 10, 90, 20)], [rectangle(70, 1, 80, 9)]])
    results['gt_masks'] = results['gt_masks'].to_bitmap()
    whole = results['gt_masks'].masks.copy()
    out = LargeScaleJitter(scale=(60, 60)).apply(results, 100 / 60, 0.0)
    assert isinstance(out['gt_masks'], BitmapMasks)
    assert np.array_equal(out['gt_masks'].masks, whole[:1, :, :60])
    assert out['gt_bboxes'].tensor.tolist() == [[50, 10, 60, 20]]
    half = LargeScaleJitter(scale=(60, 60)).apply(out, 0.5, 0.0)
    assert half['gt_masks'].masks.shape == (1, 30, 30)
    assert half['gt_bboxes'].tensor.tolist() == [[25, 5, 30, 10]]


def test_random_numbers(monkeypatch):
    """s covers its range, u is one number for both axes, nothing else is drawn."""
    jitter = LargeScaleJitter(scale=(50, 30), ratio_range=(0.1, 2.0))
    seen = []
    monkeypatch.setattr(jitter, 'apply', lambda results, s, u: seen.append((s, u)))
    np.random.seed(0)
    for _ in range(2000):
        jitter.transform({})
    scales, fractions = np.array(seen).T
    assert 0.1 <= scales.min() < 0.12
    assert 1.98 < scales.max() <= 2.0
    assert scales.mean() == pytest.approx(1.05, abs=0.05)
    assert 0 <= fractions.min() < 0.01 < 0.99 < fractions.max() < 1
    assert abs(np.corrcoef(scales, fractions)[0, 1]) < 0.1


def reference_clip(points, window):
    """Every polygon through repair and intersection, no short cut."""
    polygon = geometry.Polygon(np.reshape(points, (-1, 2))).buffer(0.0)
    clipped = polygon.intersection(geometry.box(*window))
    parts = getattr(clipped, 'geoms', [clipped])
    return [p for p in parts if isinstance(p, geometry.Polygon) and not p.is_empty]


@pytest.mark.parametrize('spread', [8, 20, 60])
def test_short_cut_changes_nothing(spread):
    rng = np.random.default_rng(spread)
    window, kinds = (20, 10, 70, 50), set()
    for _ in range(300):
        centre = rng.uniform(10, 60, 2)
        points = (centre + rng.uniform(-spread, spread, (rng.integers(3, 9), 2))).ravel()
        kinds.add(geometry.Polygon(points.reshape(-1, 2)).is_valid)
        [found] = clip_polygons([points], window)
        expected = reference_clip(points, window)
        assert len(found) == len(expected)
        shapes = [geometry.Polygon(part.reshape(-1, 2) + window[:2]) for part in found]
        for shape, reference in zip(shapes, expected):
            assert shape.bounds == pytest.approx(reference.bounds)
            assert shape.area == pytest.approx(geometry.Polygon(reference.exterior).area)
    assert kinds == {True, False}, 'self-intersecting polygons must occur'


def test_self_intersecting_polygon_inside_the_window():
    """buffer(0) keeps one lobe of a bow tie; the short cut must not keep both."""
    bow = [10, 10, 30, 30, 30, 10, 10, 30]
    [parts] = clip_polygons([np.array(bow)], (0, 0, 50, 50))
    area = sum(geometry.Polygon(part.reshape(-1, 2)).area for part in parts)
    assert area == pytest.approx(sum(p.area for p in reference_clip(bow, (0, 0, 50, 50))))


def test_pipeline_from_a_config_dict():
    init_default_scope('mmdet')
    results = dict(
        img=np.zeros((50, 80, 3), np.uint8), img_shape=(50, 80), ori_shape=(50, 80),
        instances=[
            dict(bbox=[10, 5, 30, 25], bbox_label=3, ignore_flag=0,
                 mask=[rectangle(10, 5, 30, 25)]),
            # RLE in a polygon pipeline: mmdet puts a fake polygon there, which must vanish.
            dict(bbox=[1, 1, 9, 9], bbox_label=4, ignore_flag=0,
                 mask=dict(size=[50, 80], counts=[0, 4000])),
        ],
    )  # fmt: skip
    results = LoadAnnotations(with_bbox=True, with_mask=True, poly2mask=False)(results)
    results = RandomFlip(prob=1.0)(results)
    jitter = TRANSFORMS.build(dict(type='LargeScaleJitter', scale=(80, 80), ratio_range=(1.0, 1.0)))
    results = jitter(results)
    packed = PackDetInputs()(results | dict(img_id=1, img_path='a'))['data_samples']
    assert packed.gt_instances.labels.tolist() == [3]
    assert packed.gt_instances.bboxes.tensor.tolist() == [[50, 5, 70, 25]]
    assert packed.flip


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='scale is'):
        LargeScaleJitter(scale=(0, 10))
    with pytest.raises(ValueError, match='ratio_range is'):
        LargeScaleJitter(ratio_range=(2.0, 0.1))
    with pytest.raises(NotImplementedError, match='gt_seg_map'):
        LargeScaleJitter().apply(
            dict(img=np.zeros((4, 4, 3), np.uint8), gt_seg_map=np.zeros((4, 4))), 1.0, 0.0
        )


def published_size(height, width, side):
    """Longest side to ``side``: shorter side first, then shrink, each in floating point."""
    scale = side / min(height, width)
    new = (side, scale * width) if height < width else (scale * height, side)
    if max(new) > side:
        shrink = side / max(new)
        new = (new[0] * shrink, new[1] * shrink)
    return int(new[0] + 0.5), int(new[1] + 0.5)


@pytest.mark.parametrize('side', [1280, 1536])
def test_stock_resize_shortest_edge_is_the_published_one(side):
    resize = TRANSFORMS.build(
        dict(
            type='ResizeShortestEdge', scale=side, max_size=side,
            resize_type='Resize', backend='pillow',
        )
    )  # fmt: skip
    differs = 0
    for height in range(20, 1300, 3):
        for width in (*range(21, 1300, 7), 512, 640, 1024):
            new_w, new_h = resize._get_output_shape(np.empty((height, width, 0)), side)
            assert (new_h, new_w) == published_size(height, width, side)
            differs += mmcv.rescale_size((width, height), (side, side)) != (new_w, new_h)
    assert differs > 0, 'Resize(keep_ratio=True) has become exact: use it and drop this test'


def test_stock_resize_shortest_edge_filters_as_pil():
    resize = TRANSFORMS.build(
        dict(
            type='ResizeShortestEdge', scale=64, max_size=64,
            resize_type='Resize', backend='pillow',
        )
    )  # fmt: skip
    image = np.random.default_rng(0).integers(0, 256, (200, 120, 3), dtype=np.uint8)
    out = resize(dict(img=image))
    expected = Image.fromarray(image).resize((38, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(out['img'], np.asarray(expected))
    assert out['scale_factor'] == (38 / 120, 64 / 200)
