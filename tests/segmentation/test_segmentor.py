"""The whole segmentor, shrunk from its leaves: weights, training, and the way to a map."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.errors import InputError
from eva_mm.zoo.keys import SEGMENTOR_KEYS, unknown_names

from ..helpers import load_config
from .shrunk import CROP, NUM_CLASSES, shrunk_leaf

LEAVES = [
    'coco_stuff/eva_mask2former',
    'coco_stuff/eva_mask2former_relpos',
    'ade20k/eva_mask2former',
    'ade20k/eva_mask2former_relpos',
]
COCO, ADE = 'coco_stuff/eva_mask2former', 'ade20k/eva_mask2former'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def build(cfg):
    return MODELS.build(copy.deepcopy(cfg.model))


@pytest.fixture(scope='module')
def segmentor():
    """A trained-looking model in evaluation mode: no parameter is zero."""
    torch.manual_seed(1)
    model = build(shrunk_leaf(COCO))
    model.init_weights()
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


# ------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize('name', LEAVES)
def test_names_at_full_size_are_the_published_ones(name):
    cfg = load_config(name, 'mmseg')
    with torch.device('meta'):
        model = build(cfg)
    official = SEGMENTOR_KEYS.to_official(model.state_dict())
    assert unknown_names(official, 'segmentor') == []
    classes = 171 if 'coco' in name else 150
    assert official['decode_head.cls_embed.weight'].shape == (classes + 1, 1024)
    assert official['decode_head.query_feat.weight'].shape == (200, 1024)
    layers = 9 if 'relpos' in name else 8
    last = f'decode_head.transformer_decoder.layers.{layers - 1}.attentions.0.attn.in_proj_weight'
    assert official[last].shape == (3 * 1024, 1024)
    assert last.replace(f'.{layers - 1}.', f'.{layers}.', 1) not in official
    assert ('backbone.blocks.0.attn.relative_position_bias_table' in official) == ('relpos' in name)


@pytest.mark.parametrize('name', ['coco_stuff/eva_mask2former_relpos', ADE])
def test_published_names_load_with_nothing_missing(name, tmp_path):
    cfg = shrunk_leaf(name)
    source, target = build(cfg), build(cfg)
    official = SEGMENTOR_KEYS.to_official(source.state_dict())
    assert official.keys() != source.state_dict().keys()
    official['backbone.blocks.0.attn.relative_position_index'] = torch.zeros(17, 17).long()
    torch.save(dict(state_dict=official), tmp_path / 'published.pth')
    load_checkpoint(target, str(tmp_path / 'published.pth'), strict=True)
    for key, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]), key

    del official['decode_head.pixel_decoder.encoder.layers.1.ffns.0.layers.1.weight']
    torch.save(dict(state_dict=official), tmp_path / 'broken.pth')
    with pytest.raises(CheckpointMismatchError, match=r'encoder\.layers\.1\.ffn'):
        load_checkpoint(target, str(tmp_path / 'broken.pth'))


def test_ade20k_starts_from_coco_stuff_but_for_the_class_scores(tmp_path):
    source = build(shrunk_leaf(COCO, num_classes=7))
    file = str(tmp_path / 'coco_stuff.pth')
    torch.save(dict(state_dict=SEGMENTOR_KEYS.to_official(source.state_dict())), file)
    model = build(shrunk_leaf(ADE))
    with pytest.raises(CheckpointMismatchError, match='cls_embed'):  # in a test
        load_checkpoint(model, file)
    model.init_weights()
    scores = model.decode_head.cls_embed.weight.clone()
    load_checkpoint(model, file)
    assert torch.equal(model.decode_head.cls_embed.weight, scores)
    rest = {k for k in source.state_dict() if not k.startswith('decode_head.cls_embed.')}
    own = model.state_dict()
    assert all(torch.equal(own[key], source.state_dict()[key]) for key in rest)


# ----------------------------------------------------------------------------------- training


def batch(*labels):
    """Pictures of noise with label maps."""
    samples = []
    for label in labels:
        sample = SegDataSample(
            metainfo=dict(img_shape=label.shape, ori_shape=label.shape, scale_factor=(1.0, 1.0)),
            gt_sem_seg=PixelData(data=label[None].long()),
        )
        samples.append(sample)
    inputs = [torch.randint(0, 256, (3, *label.shape), dtype=torch.uint8) for label in labels]
    return dict(inputs=inputs, data_samples=samples)


@pytest.mark.parametrize('name', LEAVES)
def test_a_training_step_moves_every_part(name):
    cfg = shrunk_leaf(name)
    model = build(cfg)
    model.init_weights()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    half = torch.zeros(CROP, CROP)
    half[:, : CROP // 2] = NUM_CLASSES - 1
    ignored = torch.full((CROP - 20, CROP), 255)  # an image without any class, to be padded
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = model.train().train_step(batch(half, ignored), wrapper)
    layers = 2
    assert {k for k in losses if 'loss_cls' in k} == {
        'decode.loss_cls',
        *(f'decode.d{i}.loss_cls' for i in range(layers)),
    }
    assert torch.isfinite(losses['loss'])
    # Injectors write nothing until their gamma has moved, and where deformable attention looks
    # depends on no query until its weights have.
    still = {n for n, p in model.named_parameters() if torch.equal(p, before[n])}
    assert {
        n for n in still if not re.search(r'\.injector\.|extractor.*\.query_norm\.', n)
    } == set()


def test_class_weights_of_another_number():
    cfg = shrunk_leaf(COCO)
    cfg.model.decode_head.num_classes = 9
    with pytest.raises(InputError, match='class_weight has 6 numbers, but num_classes is 9.* 10'):
        build(cfg)


def test_an_image_without_classes_counts_no_mask():
    """mmdet 3 counts it as one: mask and dice losses are then 2 / 3 of the published ones."""
    halves = torch.zeros(CROP, CROP)
    halves[:, : CROP // 2] = 1  # two masks
    data = batch(halves, torch.full((CROP, CROP), 255))
    losses = {}
    for count in (False, True):
        cfg = shrunk_leaf(COCO)
        assert cfg.model.decode_head.count_empty_images is False
        cfg.model.decode_head.count_empty_images = count
        torch.manual_seed(0)
        model = build(cfg)
        model.init_weights()
        prepared = model.data_preprocessor(copy.deepcopy(data), training=True)
        torch.manual_seed(1)  # the points where masks are compared
        losses[count] = model.loss(prepared['inputs'], prepared['data_samples'])
    for name, published in losses[False].items():
        factor = 1 if 'loss_cls' in name else 2 / 3
        torch.testing.assert_close(losses[True][name], factor * published)


# ------------------------------------------------------------------------------ way to a map


def predicted(model, image):
    with torch.no_grad():
        return model.inference(image, [dict(ori_shape=image.shape[-2:], pad_shape=(9999, 9999))])


def test_sliding_equals_the_whole_at_crop_size(segmentor):
    image = torch.randn(1, 3, CROP, CROP)
    features = segmentor.extract_feat(image)
    whole = segmentor.decode_head.predict(features, [{}], segmentor.test_cfg)
    assert whole.shape == (1, NUM_CLASSES, CROP, CROP)
    torch.testing.assert_close(predicted(segmentor, image), whole)


def test_sliding_averages_the_crops_over_each_pixel(segmentor):
    image = torch.randn(1, 3, CROP, 2 * CROP)
    total, count = torch.zeros(1, NUM_CLASSES, CROP, 2 * CROP), torch.zeros(2 * CROP)
    with torch.no_grad():
        for left in (0, 32, 64):
            crop = slice(left, left + CROP)
            features = segmentor.extract_feat(image[..., crop])
            total[..., crop] += segmentor.decode_head.predict(features, [{}], {})
            count[crop] += 1
    torch.testing.assert_close(predicted(segmentor, image), total / count)


def test_the_map_is_of_probabilities_enlarged(segmentor):
    """Published: sigmoid at stride 4, sum over the queries, then bilinear; mmseg's the other way
    round. The two differ, and each is what it says."""
    head = copy.copy(segmentor.decode_head)
    classes, masks = torch.randn(2, 8, NUM_CLASSES + 1), 3 * torch.randn(2, 8, 6, 4)
    weights = classes.softmax(-1)[:, :, :NUM_CLASSES]

    def enlarged(maps):
        return F.interpolate(maps, size=(24, 16), mode='bilinear', align_corners=False)

    published = enlarged((weights.mT @ masks.sigmoid().flatten(2)).reshape(2, -1, 6, 4))
    stock = (weights.mT @ enlarged(masks).sigmoid().flatten(2)).reshape(2, -1, 24, 16)
    assert head.sigmoid_before_upsampling
    torch.testing.assert_close(head.combine(classes, masks), published)
    head.sigmoid_before_upsampling = False
    torch.testing.assert_close(head.combine(classes, masks), stock)
    assert (published - stock).abs().max() > 1e-2


def test_a_prediction_has_the_original_size(segmentor):
    label = torch.zeros(CROP, 96)
    data = batch(label)
    data['data_samples'][0].set_metainfo(dict(ori_shape=(50, 75)))
    with torch.no_grad():
        (sample,) = segmentor.test_step(data)
    assert sample.pred_sem_seg.data.shape == (1, 50, 75)
    assert set(sample.pred_sem_seg.data.unique().tolist()) <= set(range(NUM_CLASSES))
