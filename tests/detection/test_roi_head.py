"""The cascade RoI head: what is matched, what is kept, what is averaged."""

import pytest
import torch
from mmdet.structures.bbox import bbox2roi
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from eva_mm.detection.roi_head import maskness, paste_masks

from ..helpers import relative_error


def pyramid(batch=1, channels=16, requires_grad=False):
    torch.manual_seed(0)
    return tuple(
        torch.randn(batch, channels, 32 // 2**i, 32 // 2**i, requires_grad=requires_grad)
        for i in range(5)
    )


def proposals(count=40):
    torch.manual_seed(1)
    corner = torch.rand(count, 2) * 60
    return InstanceData(bboxes=torch.cat((corner, corner + 10 + torch.rand(count, 2) * 40), dim=1))


@pytest.fixture
def recorded(build, sample, monkeypatch):
    """A training pass with the rois, deltas and matches of each stage written down."""
    head = build('coco').roi_head
    log = dict(rois=[], deltas=[], matches=[])
    forward, match = head._bbox_forward, head._match

    def record_forward(stage, x, rois):
        outputs = forward(stage, x, rois)
        log['rois'].append(rois)
        log['deltas'].append(outputs['bbox_pred'])
        return outputs

    def record_match(stage, boxes, gt):
        samples = match(stage, boxes, gt)
        log['matches'].append(samples)
        return samples

    monkeypatch.setattr(head, '_bbox_forward', record_forward)
    monkeypatch.setattr(head, '_match', record_match)
    # Random deltas of some size, so that refined boxes move.
    with torch.no_grad():
        for stage in head.bbox_head:
            stage.fc_reg.weight.normal_(std=0.3)
    losses = head.loss(pyramid(), [proposals()], [sample])
    return head, losses, log, sample


def test_ground_truth_is_appended_once_and_sampled_once(recorded):
    head, _, log, sample = recorded
    sizes = [len(rois) for rois in log['rois']]
    assert sizes[0] == 40 + 3  # fewer than 512 proposals: all of them, and the ground truth
    assert sizes[1] <= sizes[0]
    assert sizes[2] <= sizes[1]


def test_later_stages_match_every_refined_box(recorded):
    """Also those that came from ground truth, which mmdet's stages drop and add anew."""
    head, _, log, sample = recorded
    h, w = sample.img_shape
    for stage in (0, 1):
        boxes = head.bbox_head[stage].bbox_coder.decode(
            log['rois'][stage][:, 1:], log['deltas'][stage], max_shape=(h, w)
        )
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]
        matched = log['matches'][stage + 1][0]
        assert len(matched.pos_priors) + len(matched.neg_priors) == len(boxes)
        order = lambda b: b[b[:, 0].argsort()]  # noqa: E731
        assert torch.allclose(order(matched.priors), order(boxes.detach()), atol=1e-4)
        assert not log['rois'][stage + 1].requires_grad


def test_one_mask_loss_and_equal_stage_weights(recorded):
    head, losses, log, _ = recorded
    assert [k for k in losses if 'mask' in k] == ['loss_mask']
    assert {f's{i}.loss_cls' for i in range(3)} <= losses.keys()
    # The mask head sees the first stage's positives: proposals and ground truth, not refined ones.
    first = log['matches'][0][0]
    assert (first.pos_priors[:, None] == log['rois'][0][:, 1:]).all(-1).any(-1).all()


def test_box_features_pass_a_third_of_their_gradient(build):
    head = build('coco').roi_head
    x = pyramid(requires_grad=True)
    rois = bbox2roi([proposals().bboxes])
    sum(o.sum() for o in list(head._bbox_forward(0, x, rois).values())[:2]).backward()
    third = x[0].grad.clone()
    x[0].grad = None
    features = head.bbox_roi_extractor[0](x[:4], rois)
    sum(o.sum() for o in head.bbox_head[0](features)).backward()
    assert relative_error(third * 3, x[0].grad) < 1e-6


def test_probabilities_of_the_stages_are_averaged(build, sample):
    """Not the logits: stock mmdet's softmax of the mean logit differs."""
    head = build('coco').roi_head.eval()
    logits = torch.tensor([[4.0, 0, 0, 0, 0, 0], [0, 4.0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 6.0]])
    with torch.no_grad():
        for stage, row in zip(head.bbox_head, logits):
            stage.fc_cls.weight.zero_()
            stage.fc_cls.bias.copy_(row)
            stage.fc_reg.weight.zero_()
            stage.fc_reg.bias.zero_()
        box = InstanceData(bboxes=torch.tensor([[10.0, 10.0, 50.0, 50.0]]))
        (result,) = head.predict_bbox(pyramid(), [sample.metainfo], [box], head.test_cfg)
    mean = logits.softmax(dim=1).mean(dim=0)
    kept = mean[:5][mean[:5] > 0.05]
    assert torch.allclose(result.scores.sort().values, kept.sort().values, atol=1e-6)


def test_soft_nms_is_not_capped(build, sample):
    soft = dict(type='soft_nms', method='linear', iou_threshold=0.6, sigma=0.5, min_score=1e-3)
    head = build('coco').roi_head.eval()
    with torch.no_grad():
        for cap, expected in ((-1, None), (7, 7)):
            head.test_cfg.update(score_thr=0.0, nms=soft, max_per_img=cap)
            results = head.predict(pyramid(), [proposals(60)], [sample])
            if expected is None:
                assert len(results[0]) > 100
            else:
                assert len(results[0]) == expected
                assert len(results[0].masks) == expected


def test_results_come_in_the_original_image(build, sample):
    head = build('lvis').roi_head.eval()
    head.test_cfg.update(score_thr=0.0, max_per_img=20)
    with torch.no_grad():
        (small,) = head.predict(pyramid(), [proposals()], [sample], rescale=True)
        (large,) = head.predict(pyramid(), [proposals()], [sample], rescale=False)
    assert small.masks.shape[1:] == (48, 56)
    assert large.masks.shape[1:] == (96, 112)
    assert small.masks.dtype == torch.bool
    assert torch.allclose(small.bboxes * 2, large.bboxes, atol=1e-3)
    assert small.bboxes[:, 2].max() <= 56
    assert small.bboxes[:, 3].max() <= 48


def test_no_proposals_and_no_ground_truth(build, sample):
    head = build('coco').roi_head
    sample.gt_instances = sample.gt_instances[torch.zeros(3, dtype=torch.bool)]
    losses = head.loss(pyramid(requires_grad=True), [proposals()], [sample])
    total = sum(v for k, v in losses.items() if 'loss' in k)
    total.backward()
    assert float(losses['loss_mask']) == 0
    with torch.no_grad():
        nothing = InstanceData(bboxes=torch.zeros(0, 4))
        (result,) = head.eval().predict(pyramid(), [nothing], [sample])
    assert len(result) == 0
    assert result.masks.shape == (0, 96, 112)


def test_maskness_is_the_mean_certainty_inside():
    probs = torch.tensor([[[0.9, 0.7], [0.5, 0.1]], [[0.2, 0.5], [0.1, 0.0]]])
    assert maskness(probs).tolist() == pytest.approx([0.8, 0.0])


def test_pasting():
    probs = torch.ones(2, 28, 28)
    boxes = torch.tensor([[2.0, 1.0, 6.0, 4.0], [0.0, 0.0, 8.0, 5.0]])
    pasted = paste_masks(probs, boxes, (5, 8), threshold=0.5)
    assert pasted[0, 1:4, 2:6].all()
    assert int(pasted[0].sum()) == 12
    assert pasted[1].all()


@pytest.mark.parametrize('method', ['loss', 'predict'])
def test_head_runs_in_fp32_under_autocast(build, sample, method):
    head = build('coco').roi_head
    seen = []
    layers = [head.mask_head, *(stage.fc_cls for stage in head.bbox_head)]
    for layer in layers:
        layer.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    half = tuple(level.bfloat16() for level in pyramid())
    with torch.autocast('cpu', torch.bfloat16):
        getattr(head, method)(half, [proposals()], [sample])
    assert len(seen) == 4
    assert set(seen) == {torch.float32}


def test_raw_outputs(build, sample):
    model = build('coco').eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 128, 128), [sample], mode='tensor')
    # mmdet puts the proposals' outputs first.
    assert [tuple(o.shape[1:]) for o in outputs[-1]] == [(6,), (4,)] * 3 + [(5, 28, 28)]


def test_a_stage_without_boxes_still_has_all_its_terms(build, sample, monkeypatch):
    """Else DDP stops with parameters that got no gradient."""
    head = build('lvis').roi_head
    refine = head._refine
    monkeypatch.setattr(head, '_refine', lambda *args: 0 * refine(*args))  # all empty
    x = pyramid(requires_grad=True)
    losses = head.loss(x, [proposals()], [sample])
    names = {f's{stage}.{name}' for stage in range(3) for name in ('loss_cls', 'loss_bbox')}
    assert names | {'loss_mask'} <= losses.keys()
    sum(v for name, v in losses.items() if 'loss' in name).backward()
    without = [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_a_stock_mask_head_is_refused(build):
    config = ConfigDict(type='FCNMaskHead', loss_mask=dict(type='CrossEntropyLoss', use_mask=True))
    roi_head = build('coco').roi_head
    extractor = dict(
        type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=14),
        out_channels=16, featmap_strides=[4],
    )  # fmt: skip
    with pytest.raises(TypeError, match='should be EVAMaskHead, got FCNMaskHead'):
        roi_head.init_mask_head(extractor, config)
