"""Mask targets: polygons in boxes, by hand, where stock mmdet gives something else."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks, PolygonMasks, mask_target
from mmengine.config import ConfigDict

from eva_mm.detection.mask_head import EVAMaskHead, mask_targets_in_boxes

from .conftest import square

FIRST = torch.tensor([0])


def targets(box, masks, size=28):
    return mask_targets_in_boxes(torch.tensor([box]), masks, FIRST, size)[0]


def stock(box, masks, size=28):
    cfg = ConfigDict(mask_size=size)
    return mask_target([torch.tensor([box])], [FIRST], [masks], cfg)[0]


def test_polygon_fills_its_own_box():
    masks = PolygonMasks([[square(10, 10, 20)]], 64, 64)
    assert targets([10.0, 10.0, 30.0, 30.0], masks).mean() == 1
    left_half = targets([0.0, 10.0, 20.0, 30.0], masks)
    assert left_half[:, 14:].mean() == 1
    assert left_half[:, :14].mean() == 0


def test_union_of_parts():
    masks = PolygonMasks([[square(0, 0, 14), square(14, 14, 14)]], 28, 28)
    result = targets([0.0, 0.0, 28.0, 28.0], masks)
    assert result[:14, :14].mean() == result[14:, 14:].mean() == 1
    assert result[:14, 14:].mean() == result[14:, :14].mean() == 0


def test_boxes_are_not_clipped_to_the_canvas():
    # The box reaches 20 px beyond a canvas of 40 px; the object fills its left half.
    masks = PolygonMasks([[square(20, 0, 20)]], 40, 40)
    box = [20.0, 0.0, 60.0, 20.0]
    ours = targets(box, masks)
    assert ours[:, :14].mean() == 1
    assert ours[:, 14:].mean() == 0
    # mmdet clips the box to the canvas first, so the object fills all of it.
    assert stock(box, masks).mean() == 1


def test_narrow_boxes_are_floored_at_a_tenth_of_a_pixel():
    # A box half a pixel wide whose left half lies on the object.
    masks = PolygonMasks([[square(0, 0, 10.25)]], 40, 40)
    box = [10.0, 0.0, 10.5, 10.0]
    ours = targets(box, masks)
    assert ours[:, :14].mean() == 1
    assert ours[:, 14:].mean() == 0
    # mmdet counts the box as one pixel wide, and so the object as a quarter of it.
    assert stock(box, masks)[:, 7:14].mean() < 0.5


def test_bitmaps_go_through_roi_align():
    bitmap = np.zeros((1, 40, 40), dtype=np.uint8)
    bitmap[0, 10:30, 10:30] = 1
    masks = BitmapMasks(bitmap, 40, 40)
    box = [10.0, 10.0, 30.0, 30.0]
    assert targets(box, masks).mean() == 1
    # Beyond the canvas there is nothing, rather than the nearest column stretched.
    beyond = targets([20.0, 10.0, 60.0, 30.0], masks)
    assert beyond[:, 14:].mean() == 0
    assert torch.equal(targets(box, masks), stock(box, masks))


@pytest.mark.parametrize('kind', ['polygons', 'bitmaps'])
def test_no_boxes(kind):
    masks = PolygonMasks([[square(0, 0, 4)]], 8, 8)
    masks = masks if kind == 'polygons' else masks.to_bitmap()
    empty = mask_targets_in_boxes(torch.zeros(0, 4), masks, torch.zeros(0).long(), 28)
    assert empty.shape == (0, 28, 28)


def mask_head(**kwargs):
    torch.manual_seed(0)
    options = dict(num_convs=2, in_channels=8, conv_out_channels=8, num_classes=7, **kwargs)
    return EVAMaskHead(loss_mask=dict(type='CrossEntropyLoss', use_mask=True), **options)


@pytest.mark.parametrize(
    ('options', 'short'),
    [
        (dict(), True),
        (dict(upsample_cfg=dict(type='bilinear', scale_factor=2)), True),
        (dict(upsample_cfg=dict(type=None)), True),
        (dict(predictor_cfg=dict(type='Conv2d')), True),
        (dict(predictor_cfg=dict(type='NormedConv2d', temperature=20)), False),
    ],
)
def test_maps_of_one_class_are_those_of_all_classes(options, short):
    head = mask_head(**options)
    pooled, labels = torch.randn(5, 8, 14, 14), torch.tensor([0, 6, 3, 3, 5])
    expected = head(pooled)[torch.arange(5), labels]
    whole = []
    head.conv_logits.register_forward_hook(lambda *args: whole.append(args))
    found = head(pooled, labels)
    assert found.shape == (5, 1, *expected.shape[1:])
    torch.testing.assert_close(found[:, 0], expected)
    assert head(torch.zeros(0, 8, 14, 14), labels[:0]).shape == (0, 1, *expected.shape[1:])
    assert bool(whole) != short, 'whether the maps of all classes were computed'


def test_the_leaf_computes_one_map_per_box(build):
    head = build('lvis').roi_head.mask_head
    head.conv_logits.register_forward_hook(lambda *args: pytest.fail('maps of all classes'))
    head(torch.randn(2, head.in_channels, 14, 14), torch.tensor([1, 0]))


def test_a_head_without_classes_has_one_map():
    head = mask_head(class_agnostic=True)
    pooled = torch.randn(2, 8, 14, 14)
    assert torch.equal(head(pooled, torch.tensor([4, 1])), head(pooled))


def test_loss_of_one_class_is_that_of_all_classes():
    """mmdet's own loss, with its gradients; classes without a box get a gradient of zero."""
    head, boxes = mask_head(), torch.tensor([[2.0, 3, 20, 21], [8, 8, 30, 28]])
    masks = PolygonMasks([[square(4, 5, 12)], [square(10, 8, 9)]], 40, 40)
    samples = [SimpleNamespace(pos_priors=boxes, pos_assigned_gt_inds=torch.tensor([0, 1]),
                               pos_gt_labels=torch.tensor([6, 2]))]  # fmt: skip
    truth, cfg = [SimpleNamespace(masks=masks)], ConfigDict(mask_size=28)
    pooled = torch.randn(2, 8, 14, 14)
    losses = (
        head.loss_and_target(head(pooled), samples, truth, cfg)['loss_mask']['loss_mask'],
        head.loss_of_class(head(pooled, samples[0].pos_gt_labels), samples, truth, cfg),
    )
    torch.testing.assert_close(losses[0], losses[1])
    expected, found = (torch.autograd.grad(loss, tuple(head.parameters())) for loss in losses)
    for own, ref in zip(found, expected, strict=True):
        torch.testing.assert_close(own, ref)
