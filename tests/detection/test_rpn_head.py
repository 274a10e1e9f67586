"""Proposal network: constant normaliser, ranking by logit."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import RPNHead
from mmdet.registry import MODELS
from mmengine.structures import InstanceData

from ..helpers import relative_error


@pytest.fixture
def head(build):
    model = build('coco')
    return model.rpn_head


def features(batch=1, side=8):
    torch.manual_seed(0)
    return tuple(torch.randn(batch, 16, side // 2**i, side // 2**i) for i in range(4)) + (
        torch.randn(batch, 16, 1, 1),
    )


def test_losses_are_divided_by_the_sampler_size(head, sample):
    """255 anchors here, far fewer sampled; the divisor stays 256 per image."""
    maps = features()
    losses = head.loss(maps, [sample])

    priors = torch.cat(head.prior_generator.grid_priors([m.shape[-2:] for m in maps], device='cpu'))
    result = head.assigner.assign(InstanceData(priors=priors), sample.gt_instances)
    positive, negative = result.gt_inds > 0, result.gt_inds == 0
    assert int(positive.sum()) <= 128
    assert int((positive | negative).sum()) < 256  # so every one of them is sampled
    outputs = [head.forward_single(m) for m in maps]
    logits = torch.cat([c[0].permute(1, 2, 0).flatten() for c, _ in outputs])
    deltas = torch.cat([r[0].permute(1, 2, 0).reshape(-1, 4) for _, r in outputs])
    used = positive | negative
    cls = F.binary_cross_entropy_with_logits(logits[used], positive[used].float(), reduction='sum')
    gt = sample.gt_instances.bboxes[result.gt_inds[positive] - 1]
    box = (deltas[positive] - head.bbox_coder.encode(priors[positive], gt)).abs().sum()
    assert relative_error(sum(losses['loss_rpn_cls']), cls / 256) < 1e-5
    assert relative_error(sum(losses['loss_rpn_bbox']), box / 256) < 1e-5
    # mmdet divides by the number of sampled anchors.
    stock = RPNHead.loss(_as_stock(head), maps, [sample])
    assert relative_error(sum(stock['loss_rpn_cls']), cls / int(used.sum())) < 1e-5


def _as_stock(head):
    """mmdet's own head with the same weights and settings."""
    stock = RPNHead(
        in_channels=16,
        feat_channels=16,
        num_convs=2,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type='EVADeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
        train_cfg=head.train_cfg,
        test_cfg=head.test_cfg,
    )
    stock.load_state_dict(head.state_dict())
    return stock


def test_published_anchors(head):
    base = head.prior_generator.base_anchors
    for level, size in enumerate((32, 64, 128, 256, 512)):
        boxes = base[level]
        assert torch.allclose(boxes[:, :2], -boxes[:, 2:])  # centred at 0
        sides = boxes[:, 2:] - boxes[:, :2]
        assert torch.allclose(sides.prod(dim=1), torch.full((3,), float(size**2)), rtol=1e-4)
        assert torch.allclose(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2]), rtol=1e-4)


def test_logits_a_sigmoid_would_merge_keep_their_order(head, sample):
    """20.0 and 21.0 both have probability 1 in fp32."""
    head.eval()
    with torch.no_grad():
        for layer in (head.rpn_cls, head.rpn_reg):
            layer.weight.zero_()
            layer.bias.zero_()
    maps = features()
    logits = [torch.full((3, *m.shape[-2:]), -5.0) for m in maps]
    logits[1][1, 1, 1], logits[1][1, 3, 3] = 20.0, 21.0
    deltas = [torch.zeros(12, *m.shape[-2:]) for m in maps]
    priors = head.prior_generator.grid_priors([m.shape[-2:] for m in maps], device='cpu')
    results = head._predict_by_feat_single(
        logits, deltas, None, priors, sample.metainfo, head.test_cfg
    )
    assert results.scores[:2].tolist() == [21.0, 20.0]
    h, w = sample.img_shape
    assert results.bboxes[:, 2].max() <= w
    assert results.bboxes[:, 3].max() <= h


def test_runs_in_fp32_under_autocast(head, sample):
    maps = features()
    exact = head.loss(maps, [sample])
    with torch.autocast('cpu', torch.bfloat16):
        again = head.loss(tuple(m.bfloat16().float() for m in maps), [sample])
    assert all(loss.dtype == torch.float32 for loss in again['loss_rpn_cls'])
    assert relative_error(sum(again['loss_rpn_cls']), sum(exact['loss_rpn_cls'])) < 1e-2
    assert MODELS.get('EVARPNHead') is type(head)
