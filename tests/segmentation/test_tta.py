"""Several scales and flips: padding, what is averaged, and the views of the leaves."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate
from mmseg.models import SegTTAModel
from mmseg.registry import MODELS

from eva_mm.demo.landscapes import draw_landscape
from eva_mm.segmentation import EVASegTTAModel, PadAtLeast

from ..helpers import load_config
from .shrunk import CROP, shrunk_leaf

LEAVES = [
    f'{data}/eva_mask2former{kind}' for data in ('ade20k', 'coco_stuff') for kind in ('', '_relpos')
]


@pytest.fixture(scope='module')
def segmentor():
    torch.manual_seed(3)
    model = MODELS.build(copy.deepcopy(shrunk_leaf('ade20k/eva_mask2former').model))
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        # Queries that choose different classes, and masks that differ from place to place.
        model.decode_head.cls_embed.weight.normal_()
        model.decode_head.mask_embed[-1].weight.mul_(20)
    return model.eval()


def test_padding_is_black_on_the_right_and_below():
    image = np.full((30, 80, 3), 7, np.uint8)
    result = PadAtLeast(size=(64, 64)).transform(dict(img=image))
    assert result['img'].shape == (64, 80, 3)
    assert result['img_shape'] == result['pad_shape'] == (64, 80)
    assert (result['img'][:30] == 7).all()
    assert (result['img'][30:] == 0).all()
    assert result['padding_size'] == [0, 0, 0, 34]


@pytest.mark.parametrize('name', LEAVES)
def test_views_of_the_leaves(name):
    """Written down by hand from EVA-01/seg/configs/ade20k: 7 scales x 2 flips, 896 px windows."""
    cfg = load_config(name, 'mmseg')
    assert cfg.tta_model.type == 'EVASegTTAModel'
    load, views = cfg.tta_pipeline
    steps = views.transforms
    scales = [tuple(step.scale) for step in steps[0]]
    assert scales == [(4 * side, side) for side in (512, 640, 768, 896, 1024, 1152, 1280)]
    assert [step[0].type for step in steps[1:2] + steps[3:]] == [
        'ResizeToMultiple', 'PadAtLeast', 'LoadAnnotations', 'PackSegInputs',
    ]  # fmt: skip
    assert [step.prob for step in steps[2]] == [0.0, 1.0]
    assert tuple(steps[3][0].size) == tuple(cfg.model.test_cfg.crop_size) == (896, 896)
    assert tuple(cfg.model.test_cfg.stride) == (512, 512)


def small_views(image):
    """Two scales of an image, the smaller one less than a window, each flipped and not."""
    cfg = load_config('ade20k/eva_mask2former', 'mmseg')
    pipeline = copy.deepcopy(cfg.tta_pipeline)
    pipeline[0] = dict(type='LoadImageFromNDArray')
    steps = pipeline[1].transforms
    del steps[4]  # no labels
    for step, side in zip(steps[0], (32, 64)):
        step.scale = (4 * side, side)
    del steps[0][2:]
    steps[3][0].size = (CROP, CROP)
    return Compose(pipeline)(dict(img=image))


def window_scores(model, image):
    features = model.extract_feat(image)
    return model.decode_head.predict(features, [{}], {})


@torch.no_grad()
def test_the_mean_over_views_step_by_step(segmentor):
    """Resize, flip, pad with black, normalise, slide, cut, enlarge, softmax, turn back, average."""
    image = draw_landscape((64, 96), 0, 'val', 0)[0]
    views = small_views(image)
    assert len(views['inputs']) == 4
    (result,) = EVASegTTAModel(segmentor).test_step(pseudo_collate([views]))
    mean = torch.tensor([123.675, 116.28, 103.53]).reshape(3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).reshape(3, 1, 1)
    total = torch.zeros(5, 64, 96)
    for raw, sample in zip(views['inputs'], views['data_samples']):
        assert min(raw.shape[1:]) >= CROP
        rows, columns = raw.shape[1] - sample.padding_size[3], raw.shape[2] - sample.padding_size[1]
        assert (raw[:, rows:] == 0).all()
        assert (raw[..., columns:] == 0).all()
        assert rows % 32 == columns % 32 == 0
        picture = ((raw.flip(0).float() - mean) / std)[None]
        scores, count = torch.zeros(1, 5, *picture.shape[2:]), torch.zeros(picture.shape[2:])
        # Windows of 64 px in steps of 32, the last one at the border.
        lefts = sorted(
            {min(left, picture.shape[3] - 64) for left in range(0, picture.shape[3], 32)}
        )
        for left in lefts:
            window = picture[..., left : left + 64]
            scores[..., left : left + 64] += window_scores(segmentor, window)
            count[:, left : left + 64] += 1
        scores = (scores / count)[..., :rows, :columns]
        if sample.flip:
            scores = scores.flip(3)
        scores = F.interpolate(scores, (64, 96), mode='bilinear', align_corners=False)[0]
        total += scores.softmax(0)
    assert [bool(s.flip) for s in views['data_samples']] == [False, True, False, True]
    mean, found = result.seg_logits.data, result.pred_sem_seg.data[0]
    torch.testing.assert_close(mean, total / 4, rtol=1e-4, atol=1e-6)
    assert total.flatten(1).std(1).min() > 1e-3  # it says something
    assert torch.equal(found, mean.argmax(0))


@torch.no_grad()
def test_equals_mmseg_which_keeps_every_view(segmentor):
    image = draw_landscape((70, 80), 0, 'val', 1)[0]
    views = small_views(image)
    (ours,) = EVASegTTAModel(segmentor).test_step(pseudo_collate([copy.deepcopy(views)]))
    (theirs,) = SegTTAModel(segmentor).test_step(pseudo_collate([views]))
    assert torch.equal(ours.pred_sem_seg.data, theirs.pred_sem_seg.data)
    single = segmentor.test_step(
        pseudo_collate([dict(inputs=views['inputs'][2], data_samples=views['data_samples'][2])])
    )[0]
    assert not torch.allclose(ours.seg_logits.data, single.seg_logits.data.softmax(0), atol=1e-4)
