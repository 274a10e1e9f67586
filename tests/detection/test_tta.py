"""Test-time augmentation: views are mapped back exactly, and merging does what it says."""

import copy

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from eva_mm.detection.roi_head import maskness
from eva_mm.detection.tta import EVADetTTAModel, boxes_to_image, boxes_to_view, unflip_masks
from eva_mm.engine import launch
from eva_mm.errors import InputError

from ..helpers import load_config, shrink_detector

HARD = dict(type='nms', iou_threshold=0.5)
SOFT = dict(type='soft_nms', method='linear', iou_threshold=0.6, sigma=0.5, min_score=1e-3)
SIDE = 128  # px of the square images below, which need no padding


def view_meta(direction=None, ori=(64, 64), shape=(SIDE, SIDE)):
    return dict(
        ori_shape=ori,
        img_shape=shape,
        scale_factor=(shape[1] / ori[1], shape[0] / ori[0]),
        flip=direction is not None,
        flip_direction=direction,
    )


@pytest.mark.parametrize(
    ('direction', 'expected'),
    [
        (None, [20.0, 30.0, 60.0, 90.0]),
        ('horizontal', [40.0, 30.0, 80.0, 90.0]),
        ('vertical', [20.0, 60.0, 60.0, 120.0]),
        ('diagonal', [40.0, 60.0, 80.0, 120.0]),
    ],
)
def test_boxes_of_a_view(direction, expected):
    """An image of 50 x 50 px shown at 100 x 150 (width, height)."""
    meta = view_meta(direction, ori=(50, 50), shape=(150, 100))
    boxes = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    seen = boxes_to_view(boxes, meta)
    assert seen.tolist() == [expected]
    assert torch.equal(boxes_to_image(seen, meta), boxes)


def test_boxes_are_clipped_to_the_original_image():
    meta = view_meta('horizontal', ori=(50, 50), shape=(100, 100))
    boxes = boxes_to_image(torch.tensor([[-4.0, -4.0, 104.0, 104.0]]), meta)
    assert boxes.tolist() == [[0.0, 0.0, 50.0, 50.0]]


@pytest.mark.parametrize(
    ('direction', 'expected'),
    [
        (None, [[1, 2], [3, 4]]),
        ('horizontal', [[2, 1], [4, 3]]),
        ('vertical', [[3, 4], [1, 2]]),
        ('diagonal', [[4, 3], [2, 1]]),
    ],
)
def test_masks_are_turned_back(direction, expected):
    masks = torch.tensor([[[1, 2], [3, 4]]])
    assert unflip_masks(masks, view_meta(direction)).tolist() == [expected]


# ---------------------------------------------------------------- a detector that knows no left


def mirror(weight):
    return (weight + weight.flip(-1)) / 2


def make_symmetric(head):
    """Weights such that a mirrored image gives mirrored boxes and masks."""
    with torch.no_grad():
        for module in head.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
                module.weight.copy_(mirror(module.weight))
        for box_head in head.bbox_head:
            first = box_head.shared_fcs[0].weight
            first.copy_(mirror(first.view(len(first), -1, 7, 7)).reshape(first.shape))
            box_head.fc_cls.weight.mul_(300)  # scores that tell boxes apart
            box_head.fc_reg.weight.mul_(30)
            box_head.fc_reg.weight[0] = 0  # a shift to the right has no mirrored twin
            box_head.fc_reg.bias[0] = 0
        head.mask_head.conv_logits.weight.mul_(3000)


class Scene:
    """Stands in for backbone and proposals: features of one image, mirrored with it.

    The image is brighter on its left; that is how a mirrored one is known.
    """

    def __init__(self, channels=16):
        generator = torch.Generator().manual_seed(1)
        sides = (SIDE // 4, SIDE // 8, SIDE // 16, SIDE // 32, SIDE // 64)
        self.levels = [torch.randn(1, channels, s, s, generator=generator) for s in sides]
        # One above the other: equal scores of overlapping twins would leave the order open.
        corners = [(6.0 + 9 * i, 5.0 + 24 * i, 30.0 + 5 * i) for i in range(4)]
        boxes = [[x, y, x + s, min(y + s, SIDE - 1.0)] for x, y, s in corners]
        near = [[x + 3, y + 2, x2 + 3, y2 + 2] for x, y, x2, y2 in boxes]
        self.boxes = torch.tensor(boxes + near)

    @staticmethod
    def image():
        image = torch.full((3, SIDE, SIDE), 40, dtype=torch.uint8)
        image[:, :, : SIDE // 2] = 200
        return image

    def install(self, model):
        def mirrored(inputs):
            return bool(inputs[..., : SIDE // 2].mean() < inputs[..., SIDE // 2 :].mean())

        def extract_feat(inputs):
            assert inputs.shape == (1, 3, SIDE, SIDE)
            self.now = mirrored(inputs)
            return tuple(x.flip(-1) if self.now else x for x in self.levels)

        def predict(features, samples, rescale):
            boxes = self.boxes.clone()
            if self.now:
                boxes[:, [0, 2]] = SIDE - self.boxes[:, [2, 0]]
            return [InstanceData(bboxes=boxes)]

        model.extract_feat = extract_feat
        model.rpn_head.predict = predict


@pytest.fixture
def symmetric(build):
    """``symmetric(nms, maskness)``: the detector of a :class:`Scene`."""

    def _symmetric(nms, certain=False):
        rcnn = dict(score_thr=0.01, nms=nms, max_per_img=-1, mask_thr_binary=0.5, maskness=certain)
        model = build('coco').eval()
        model.roi_head.test_cfg = ConfigDict(rcnn)
        torch.manual_seed(0)
        model.init_weights()
        make_symmetric(model.roi_head)
        Scene().install(model)
        return model

    return _symmetric


def batch_of(directions):
    """The scene's image in several views."""
    inputs, samples = [], []
    for direction in directions:
        image = Scene.image()
        inputs.append([image.flip(-1) if direction else image])
        samples.append([DetDataSample(metainfo=view_meta(direction))])
    return dict(inputs=inputs, data_samples=samples)


def plain_detections(model):
    batch = batch_of([None])
    with torch.no_grad():
        data = dict(inputs=batch['inputs'][0], data_samples=batch['data_samples'][0])
        return model.test_step(data)[0].pred_instances


def assert_equal_detections(actual, expected):
    """The same up to the order of almost equal scores."""
    assert len(actual) == len(expected) > 3
    order = (actual.scores[:, None] - expected.scores).abs()
    order = order + (actual.bboxes[:, None] - expected.bboxes).abs().sum(-1)
    order = order + 1000.0 * (actual.labels[:, None] != expected.labels)
    match = order.argmin(dim=1)
    assert sorted(match.tolist()) == list(range(len(expected)))
    torch.testing.assert_close(actual.bboxes, expected.bboxes[match], atol=1e-3, rtol=0)
    torch.testing.assert_close(actual.scores, expected.scores[match], atol=1e-4, rtol=1e-3)
    differing = (actual.masks != expected.masks[match]).float().mean()
    assert differing < 2e-3  # pixels on the border of a mask


@pytest.mark.parametrize('nms', [HARD, SOFT], ids=['nms', 'soft-nms'])
@pytest.mark.parametrize('certain', [False, True], ids=['', 'maskness'])
@pytest.mark.parametrize(
    'directions', [[None], ['horizontal'], [None, None], [None, 'horizontal']], ids=str
)
def test_views_of_the_same_give_what_one_view_gives(symmetric, nms, certain, directions):
    model = symmetric(nms, certain)
    expected = plain_detections(model)
    assert expected.masks.any(dim=(1, 2)).any()
    assert not expected.masks.all()
    with torch.no_grad():
        actual = EVADetTTAModel(model).test_step(batch_of(directions))[0].pred_instances
    assert_equal_detections(actual, expected)


def test_an_asymmetric_detector_sees_two_views_differently(symmetric):
    """Else the test above would pass with a merge that drops the second view."""
    model = symmetric(HARD)
    with torch.no_grad():
        model.roi_head.bbox_head[2].shared_fcs[0].weight.normal_()
        alone = plain_detections(model)
        both = EVADetTTAModel(model).test_step(batch_of([None, 'horizontal']))[0].pred_instances
    assert len(both) != len(alone) or not torch.allclose(both.scores, alone.scores, atol=1e-3)


def test_masks_are_averaged_before_maskness(symmetric, monkeypatch):
    model = symmetric(HARD, certain=True)
    seen = []
    original = model.roi_head.predict_mask_probs

    def noisy(features, results_list, cfg):
        results = original(features, results_list, cfg)
        for found in results:
            found.mask_probs = torch.full_like(found.mask_probs, (0.9, 0.6)[len(seen) % 2])
            seen.append(len(found))
        return results

    monkeypatch.setattr(model.roi_head, 'predict_mask_probs', noisy)
    tta = EVADetTTAModel(model, tta_cfg=dict(max_per_img=5))
    with torch.no_grad():
        certain = tta.test_step(batch_of([None, 'horizontal']))[0].pred_instances
        tta.cfg.maskness = False
        plain = tta.test_step(batch_of([None, 'horizontal']))[0].pred_instances
    assert seen == [5] * 4
    assert maskness(torch.full((1, 2, 2), 0.75)).item() == pytest.approx(0.75)
    torch.testing.assert_close(certain.scores, plain.scores * 0.75)


def test_boxes_alone(build):
    model = build('coco').eval()
    model.roi_head.mask_head = None
    model.roi_head.test_cfg = ConfigDict(score_thr=0.0, nms=HARD, max_per_img=7)
    Scene().install(model)
    with torch.no_grad():
        found = EVADetTTAModel(model).test_step(batch_of([None, 'horizontal']))[0].pred_instances
    assert len(found) == 7
    assert 'masks' not in found


def test_nothing_found(symmetric):
    model = symmetric(HARD)
    tta = EVADetTTAModel(model, tta_cfg=dict(score_thr=1.0))
    with torch.no_grad():
        found = tta.test_step(batch_of([None, 'horizontal']))[0].pred_instances
    assert found.masks.shape == (0, 64, 64)
    assert found.bboxes.shape == (0, 4)


# ------------------------------------------------------------------------------ as configured


def small_views(pipeline, sides):
    """A leaf's pipeline with other sides; nothing else changes."""
    pipeline = copy.deepcopy(pipeline)
    resizes = pipeline[1].transforms[0]
    assert len(resizes) == len(sides)
    for resize, side in zip(resizes, sides):
        resize.update(scale=side, max_size=side)
    return pipeline


@pytest.mark.parametrize(
    ('name', 'sides', 'pads'),
    [
        ('coco/eva_cascade_1536_test', (128,), [128] * 2),
        ('lvis/eva_cascade_multi_scale_test', (101, 64, 150), [128] * 2 + [64] * 2 + [160] * 2),
        ('objects365/eva_cascade_1536_test', (128,), [128] * 2),
    ],
)
def test_leaves_run_on_odd_sizes(tmp_path, name, sides, pads):
    """From the pipeline that reads a file to masks in it, two images of odd sizes at once."""
    cfg = shrink_detector(load_config(name))
    cfg.model.test_cfg.rpn.max_per_img = 30
    with_mask = cfg.model.roi_head.mask_head is not None
    launch.enable_tta(cfg)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    seen = []
    model.module.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2:]))
    pipeline = Compose(small_views(cfg.test_dataloader.dataset.pipeline, sides))
    rng = np.random.default_rng(0)
    shapes = [(75, 101), (99, 53)]
    views = []
    for index, shape in enumerate(shapes):
        path = tmp_path / f'{index}.png'
        cv2.imwrite(str(path), rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        views.append(pipeline(dict(img_path=str(path), img_id=index)))
    with torch.no_grad():
        results = model.test_step(pseudo_collate(views))
    assert [tuple(shape) for shape in seen] == [(pad, pad) for pad in pads]
    assert model.module.data_preprocessor.pad_size == (128, 128)
    for index, (sample, shape) in enumerate(zip(results, shapes)):
        found = sample.pred_instances
        assert sample.img_id == index
        assert 0 < len(found) <= max(model.cfg.max_per_img, 300)
        assert (found.bboxes >= 0).all()
        assert (found.bboxes[:, 2:] <= torch.tensor(shape[::-1])).all()
        assert ('masks' in found) is with_mask
        if with_mask:
            assert found.masks.shape == (len(found), *shape)


def test_other_detectors_are_refused():
    with pytest.raises(InputError, match='needs a detector with EVACascadeRoIHead'):
        EVADetTTAModel(Stranger())


@pytest.mark.parametrize('divisor', [24, 0])
def test_padding_that_patches_do_not_divide_is_refused(build, divisor):
    with pytest.raises(InputError, match=f'multiple of 16 px, found {divisor}'):
        EVADetTTAModel(build('coco'), pad_divisor=divisor)


class Stranger(torch.nn.Module):
    def test_step(self, data):
        raise AssertionError
