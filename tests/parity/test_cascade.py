"""The detector against the authors' code: every stage on its own, and end to end."""

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData

from eva_mm.zoo.keys import DETECTOR_KEYS

from ..helpers import load_config, one_to_one, relative_error, shrink_detector
from .reference import reference_files

LEAVES = dict(coco='coco/eva_cascade', lvis='lvis/eva_cascade')
EVERY = 100_000  # sampler size at which every box or anchor is sampled
SOFT_NMS = dict(type='soft_nms', method='linear', iou_threshold=0.6, sigma=0.5, min_score=1e-3)

pytestmark = pytest.mark.parametrize('path', reference_files('cascade_'))


def shrunk_config(ref: dict):
    """The leaf config at the reference's size, through options a user could type."""
    c = ref['config']
    windowed = set(c['window_block_indexes'])
    cfg = shrink_detector(
        load_config(LEAVES[c['kind']]),
        pad_size=tuple(ref['padded_shape'][-2:]),
        img_size=c['img_size'],
        patch_size=c['patch_size'],
        embed_dim=c['embed_dim'],
        depth=c['depth'],
        num_heads=c['num_heads'],
        mlp_dim=int(c['embed_dim'] * c['mlp_ratio']),
        window_size=c['window_size'],
        global_block_indexes=tuple(i for i in range(c['depth']) if i not in windowed),
        channels=c['fpn_channels'],
        fc_channels=c['fc_channels'],
        num_classes=c['num_classes'],
    )
    cfg.model.data_preprocessor.update(mean=c['pixel_mean'], std=c['pixel_std'])
    cfg.model.backbone.rel_pos_interpolation = c['rel_pos_interp']
    if c['kind'] == 'lvis':
        # The reference keeps every class in the federated loss: shrink_detector samples them all.
        counts = [weight**2 for weight in c['fed_loss_weights']]
        cfg.model.roi_head.bbox_head.loss_cls.class_image_counts = counts
    # Sample every box and every anchor, as the reference losses do.
    cfg.model.train_cfg.rcnn[0].sampler.update(num=EVERY, pos_fraction=1.0)
    cfg.model.train_cfg.rpn.sampler.update(num=EVERY, pos_fraction=1.0)
    return cfg


@functools.lru_cache(maxsize=1)
def loaded(path, tmp_dir) -> tuple[dict, torch.nn.Module]:
    """Reference and model; the checkpoint comes in as a user's file does, nothing missing."""
    ref = torch.load(path, weights_only=True)
    model = MODELS.build(shrunk_config(ref).model)
    file = tmp_dir / f'{path.stem}.pth'
    torch.save(ref['checkpoint'], file)
    checkpoint = load_checkpoint(model, str(file), strict=False)
    assert checkpoint['state_dict'].keys() == ref['checkpoint']['model'].keys()
    own = set(DETECTOR_KEYS.to_official(model.state_dict()))
    class_weights = {k for k in own if k.endswith('fed_loss_cls_weights')}
    assert own - class_weights == set(ref['checkpoint']['model']) - class_weights
    return ref, model.eval()


@pytest.fixture
def case(path, tmp_path_factory):
    ref, model = loaded(path, tmp_path_factory.getbasetemp())
    model.eval()
    model.zero_grad()
    return ref, model


def holds_within_rounding(check: Callable[[float], None], tries: int = 8) -> None:
    """Run ``check(noise)`` without noise, and if it fails with the images changed by rounding.

    ReLU, NMS and thresholds are discontinuous: where a value lies within fp32 rounding of the edge,
    either side is right, and the authors' sums need not fall on ours. A relative noise of 1e-6 in
    the images draws the sides anew; an error of the code fails every time.
    """
    for attempt in range(tries):
        torch.manual_seed(attempt)
        try:
            return check(1e-6 if attempt else 0.0)
        except AssertionError:
            if attempt == tries - 1:
                raise
    return None


def batch(ref: dict, model: torch.nn.Module, noise: float = 0.0):
    """Preprocessed images and their data samples, nothing resized."""
    samples = []
    for image in ref['images']:
        h, w = image.shape[-2:]
        meta = dict(img_shape=(h, w), ori_shape=(h, w), scale_factor=(1.0, 1.0))
        samples.append(DetDataSample(metainfo=meta))
    bgr = [image.flip(0) for image in ref['images']]
    data = model.data_preprocessor(dict(inputs=bgr, data_samples=samples))
    inputs = data['inputs']
    return inputs * (1 + noise * torch.randn_like(inputs)), data['data_samples']


def assert_same_detections(own: InstanceData, ref: dict, score_tol: float = 1e-4) -> None:
    """Same boxes (0.05 px), labels and scores, up to the order of equal scores."""
    assert len(own) == len(ref['boxes'])
    boxes = (own.bboxes[:, None] - ref['boxes'][None]).abs().amax(dim=-1) <= 0.05
    scores = (own.scores[:, None] - ref['scores'][None]).abs() <= score_tol
    allowed = boxes & scores
    if 'labels' in ref:
        allowed &= own.labels[:, None] == ref['labels'][None]
    assert one_to_one(allowed.numpy()), 'some detection has no counterpart'


@torch.no_grad()
def test_features_and_pyramid(case):
    ref, model = case
    inputs, _ = batch(ref, model)
    assert tuple(inputs.shape) == tuple(ref['padded_shape'])
    feature = model.backbone(inputs)
    assert relative_error(feature[0], ref['vit_feature']) < 1e-4
    for level, (name, expected) in zip(model.neck(feature), sorted(ref['pyramid'].items())):
        assert relative_error(level, expected) < 1e-4, name


@torch.no_grad()
def test_proposals(case):
    ref, model = case

    def check(noise):
        inputs, samples = batch(ref, model, noise)
        results = model.rpn_head.predict(model.extract_feat(inputs), samples, rescale=False)
        for own, expected in zip(results, ref['proposals']):
            expected = dict(boxes=expected['boxes'], scores=expected['objectness'])
            assert_same_detections(own, expected)

    holds_within_rounding(check)


def predict(
    ref: dict, model: torch.nn.Module, noise: float = 0.0, with_masks: bool = True, **test_cfg
) -> tuple[list, list]:
    """Detections with their mask probabilities, and what the detector itself returns."""
    saved = copy.deepcopy(model.roi_head.test_cfg)
    cfg = model.roi_head.test_cfg
    cfg.update(test_cfg)
    final = []
    try:
        inputs, samples = batch(ref, model, noise)
        features = model.extract_feat(inputs)
        proposals = model.rpn_head.predict(features, samples, rescale=False)
        metas = [sample.metainfo for sample in samples]
        results = model.roi_head.predict_bbox(features, metas, proposals, cfg)
        if with_masks:
            model.roi_head.predict_mask_probs(features, results, cfg)
            final = [s.pred_instances for s in model.predict(inputs, samples, rescale=True)]
    finally:
        model.roi_head.test_cfg = saved
    return results, final


@torch.no_grad()
@pytest.mark.parametrize('with_maskness', [False, True])
def test_detections_with_nms(case, with_maskness):
    ref, model = case

    def check(noise):
        results, final = predict(ref, model, noise, maskness=with_maskness)
        for index, (own, expected) in enumerate(zip(results, ref['detections_nms'])):
            expected = dict(expected)
            if with_maskness:
                expected['scores'] = ref['detections_nms_maskness_scores'][index]
            assert_same_detections(own, expected)
            # The detector's own output is these boxes, clipped and without empty ones.
            sides = expected['boxes'][:, 2:] - expected['boxes'][:, :2]
            assert len(final[index]) == int((sides > 0).all(dim=1).sum())

    holds_within_rounding(check)


@torch.no_grad()
def test_mask_probabilities(case):
    ref, model = case
    results, _ = predict(ref, model)
    for own, expected in zip(results, ref['detections_nms']):
        distance = torch.cdist(own.bboxes, expected['boxes'], p=float('inf'))
        other = own.labels[:, None] != expected['labels'][None]
        nearest = (distance + 1e6 * other).argmin(dim=0)
        masks = expected['masks'].reshape(len(nearest), *own.mask_probs.shape[1:])
        assert relative_error(own.mask_probs[nearest], masks) < 1e-4


@torch.no_grad()
def test_detections_with_soft_nms(case):
    ref, model = case

    def check(noise):
        options = dict(score_thr=0.0, nms=SOFT_NMS, max_per_img=-1)
        results, _ = predict(ref, model, noise, with_masks=False, **options)
        expected_best = ref['detections_softnms_linear_top300']
        for index, (own, expected) in enumerate(zip(results, expected_best)):
            assert len(own) == ref['detections_softnms_linear_count'][index]
            best = own.scores.argsort(descending=True)[: len(expected['scores'])]
            assert_same_detections(own[best], expected)

    holds_within_rounding(check)


def training_samples(ref: dict, samples: list) -> list:
    """Data samples with the reference's ground truth; its masks are bitmaps or polygons."""
    train = ref['train']
    for index, sample in enumerate(samples):
        h, w = sample.img_shape
        if 'gt_polygons' in train:
            parts = [[np.asarray(p) for p in i] for i in train['gt_polygons'][index]]
            gt_masks = PolygonMasks(parts, h, w)
        else:
            gt_masks = BitmapMasks(train['gt_masks'][index].numpy().astype(np.uint8), h, w)
        sample.gt_instances = InstanceData(
            bboxes=train['gt_boxes'][index], labels=train['gt_labels'][index], masks=gt_masks
        )
    return samples


LOSSES = {'loss_mask': 'loss_mask'}
for _stage in range(3):
    LOSSES[f's{_stage}.loss_cls'] = f'loss_cls_stage{_stage}'
    LOSSES[f's{_stage}.loss_bbox'] = f'loss_box_reg_stage{_stage}'


def test_training_losses_and_gradients(case):
    ref, model = case
    if 'train' not in ref:
        pytest.skip('the reference holds no training part')
    train = ref['train']

    def check(noise):
        model.zero_grad()
        inputs, samples = batch(ref, model, noise)
        samples = training_samples(ref, samples)
        proposals = [InstanceData(bboxes=boxes) for boxes in train['proposals']]
        model.train()
        losses = model.roi_head.loss(model.extract_feat(inputs), proposals, samples)
        assert {k for k in losses if 'loss' in k} == set(LOSSES)
        for own, expected in LOSSES.items():
            assert relative_error(losses[own], train['losses'][expected]) < 1e-4, own
        sum(losses[name] for name in LOSSES).backward()
        gradients = DETECTOR_KEYS.to_official({n: p.grad for n, p in model.named_parameters()})
        for name, expected in train['grads'].items():
            assert relative_error(gradients[name], expected) < 1e-3, name

    holds_within_rounding(check)


def test_rpn_losses(case):
    ref, model = case
    if 'rpn' not in ref.get('train', {}):
        pytest.skip('the reference holds no losses of the proposal network')
    inputs, samples = batch(ref, model)
    samples = training_samples(ref, samples)
    for sample in samples:
        sample.gt_instances.labels.zero_()  # "object", as mmdet's two-stage detectors set it
    model.train()
    losses = model.rpn_head.loss(model.extract_feat(inputs), samples)
    for own, expected in (('loss_rpn_cls', 'loss_rpn_cls'), ('loss_rpn_bbox', 'loss_rpn_loc')):
        assert relative_error(sum(losses[own]), ref['train']['rpn']['losses'][expected]) < 1e-4, own
