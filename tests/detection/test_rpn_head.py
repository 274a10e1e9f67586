"""Proposal network: constant normaliser, ranking by logit."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import RPNHead
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


@pytest.fixture
def objects(sample):
    """The sample with "object" for every label, as mmdet's two-stage detectors hand it on."""
    sample.gt_instances.labels.zero_()
    return sample


def test_losses_are_divided_by_the_sampler_size(head, objects):
    """255 anchors here, far fewer sampled; the divisor stays 256 per image."""
    maps = features()
    with torch.no_grad():
        head.rpn_cls.weight.normal_()
    losses = head.loss(maps, [objects])

    priors = torch.cat(head.prior_generator.grid_priors([m.shape[-2:] for m in maps], device='cpu'))
    result = head.assigner.assign(InstanceData(priors=priors), objects.gt_instances)
    positive, negative = result.gt_inds > 0, result.gt_inds == 0
    assert int(positive.sum()) <= 128
    assert int((positive | negative).sum()) < 256  # so every one of them is sampled
    outputs = [head.forward_single(m) for m in maps]
    logits = torch.cat([c[0].permute(1, 2, 0).flatten() for c, _ in outputs])
    deltas = torch.cat([r[0].permute(1, 2, 0).reshape(-1, 4) for _, r in outputs])
    used = positive | negative
    cls = F.binary_cross_entropy_with_logits(logits[used], positive[used].float(), reduction='sum')
    gt = objects.gt_instances.bboxes[result.gt_inds[positive] - 1]
    box = (deltas[positive] - head.bbox_coder.encode(priors[positive], gt)).abs().sum()
    assert relative_error(sum(losses['loss_rpn_cls']), cls / 256) < 1e-5
    assert relative_error(sum(losses['loss_rpn_bbox']), box / 256) < 1e-5
    # mmdet divides by the number of sampled anchors.
    stock = RPNHead.loss(_as_stock(head), maps, [objects])
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


@pytest.mark.parametrize('method', ['loss', 'loss_and_predict', 'predict'])
def test_runs_in_fp32_under_autocast(head, sample, method):
    seen = []
    for layer in (head.rpn_cls, head.rpn_reg):
        layer.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    options = dict(proposal_cfg=head.test_cfg) if method == 'loss_and_predict' else {}
    half = tuple(level.bfloat16() for level in features())
    with torch.autocast('cpu', torch.bfloat16):
        getattr(head, method)(half, [sample], **options)
    assert set(seen) == {torch.float32}


def test_no_valid_proposal(head, sample):
    """Deltas that are not finite leave none; an image without proposals is no error."""
    with torch.no_grad():
        head.rpn_reg.bias.fill_(float('nan'))
        (none,) = head.eval().predict(features(), [sample])
    assert none.bboxes.shape == (0, 4)


def test_boxes_in_the_original_image(head, sample):
    head.eval()
    with torch.no_grad():
        (small,) = head.predict(features(), [sample], rescale=True)
        (large,) = head.predict(features(), [sample], rescale=False)
    assert torch.allclose(small.bboxes * 2, large.bboxes, atol=1e-3)
