"""Conversion: exact where names alone change, by the published rules where sizes do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.runner import load_checkpoint

from eva_mm.errors import InputError
from eva_mm.vit import EVAVisionTransformer
from eva_mm.zoo import files
from eva_mm.zoo.convert import convert
from eva_mm.zoo.files import convert_file, load_head_rows
from eva_mm.zoo.keys import PARTS, TABLES
from eva_mm.zoo.reading import read_checkpoint

from ..helpers import load_config, relative_error, shrink_detector
from ..parity.reference import reference_dir
from .fresh import DIM, fresh

ROOT = Path(__file__).resolve().parents[2]


def assert_same(actual, expected):
    """Names, their order, dtypes and every bit."""
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor), name


def reference(name):
    path = reference_dir() / name
    if not path.is_file():
        pytest.skip(f'no reference file {path} (see EVA_MM_REFERENCE)')
    return torch.load(path, weights_only=True)


def saved(path, content):
    torch.save(content, path)
    return path


# --------------------------------------------------------------------------------- exactness


def round_trip(weights, kind, folder):
    """official -> mm -> official and -> safetensors -> official, through files."""
    source = saved(folder / 'source.pth', dict(model=weights, iteration=7))
    to_mm = convert_file(source, folder / 'mm.pth')
    assert to_mm.kind == kind
    assert not to_mm.resized
    assert not to_mm.dropped
    ours = read_checkpoint(folder / 'mm.pth')['state_dict']
    assert bool(to_mm.renamed) == (list(ours) != list(weights))
    convert_file(folder / 'mm.pth', folder / 'official.pth', 'official')
    back = torch.load(folder / 'official.pth', weights_only=True)
    assert list(back) == ['model']
    assert_same(back['model'], weights)
    convert_file(folder / 'mm.pth', folder / 'mm.safetensors', 'safetensors')
    assert_same(read_checkpoint(folder / 'mm.safetensors')['state_dict'], ours)
    convert_file(folder / 'mm.safetensors', folder / 'again.pth', 'official')
    assert_same(torch.load(folder / 'again.pth', weights_only=True)['model'], weights)


@pytest.mark.parametrize('kind', sorted(PARTS))
def test_fresh_checkpoints_come_back_bit_for_bit(kind, tmp_path):
    weights = fresh(kind)
    round_trip(weights, kind, tmp_path)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_precision_survives_the_round_trip(dtype, tmp_path):
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in fresh('video').items()}
    weights['head.bias'] = weights['head.bias'].float()  # mixed, as in eva_psz14to16.pt
    round_trip(weights, 'video', tmp_path)


@pytest.mark.parametrize(
    ('file', 'kind'),
    [
        ('classifier_tiny.pt', 'classifier'),
        ('mim_tiny.pt', 'mim'),
        ('mae_tiny.pt', 'mae'),
        ('cascade_coco_tiny.pt', 'detector'),
        ('cascade_lvis_tiny.pt', 'detector'),
        ('video_tiny.pt', 'video'),
        ('adapter_tiny.pt', 'segmentor'),
    ],
)
def test_reference_checkpoints_come_back_bit_for_bit(file, kind, tmp_path):
    content = reference(file)
    weights = content['checkpoint']['model'] if 'checkpoint' in content else content['state_dict']
    round_trip(weights, kind, tmp_path)
    if kind == 'segmentor':  # the reference is the backbone alone
        whole = tmp_path / 'whole'
        whole.mkdir()
        round_trip({f'backbone.{k}': v for k, v in weights.items()}, kind, whole)


def test_our_detector_loads_what_was_converted(tmp_path):
    cfg = shrink_detector(load_config('lvis/eva_cascade'))
    model = MODELS.build(cfg.model)
    source = saved(tmp_path / 'lvis.pth', dict(model=fresh('detector')))
    convert_file(source, tmp_path / 'mm.pth')
    load_checkpoint(model, str(tmp_path / 'mm.pth'), strict=True)
    expected = fresh('detector')['roi_heads.box_predictor.1.cls_score.weight']
    assert torch.equal(model.roi_head.bbox_head[1].fc_cls.weight, expected)


@pytest.mark.parametrize('kind', ['classifier', 'mim', 'linear', 'clip'])
def test_timm_names(kind, tmp_path):
    """timm knows encoders and classifiers, whose names are the published ones, and CLIP."""
    source = saved(tmp_path / 'source.pth', fresh(kind))
    if kind == 'mim':
        with pytest.raises(InputError, match='no place for 3 parts of pretraining') as error:
            convert_file(source, tmp_path / 'timm.pth', 'timm')
        assert 'lm_head.weight: 24 x 32' in str(error.value)
    options = dict(drop_pretraining_parts=kind == 'mim')
    report = convert_file(source, tmp_path / 'timm.pth', 'timm', **options)
    weights = torch.load(tmp_path / 'timm.pth', weights_only=True)
    assert {tuple(weights[k].shape) for k in weights if k.endswith('pos_embed')} == {(1, 17, DIM)}
    beside = {'mask_token', 'lm_head.weight', 'lm_head.bias'}
    assert set(report.dropped) == (beside if kind == 'mim' else set())
    assert bool(report.folded) == (kind == 'linear')
    if kind == 'linear':
        assert report.folded['head.0.running_mean'] == (DIM,)
        assert 'folded: 5' in str(report)
        assert 'head.weight, head.bias hold the normalisation and the layer' in str(report)
    if kind == 'clip':
        assert report.renamed['visual.pos_embed'] == 'visual.trunk.pos_embed'
        back, _ = convert(weights, 'official')
        assert_same({k: back[k] for k in fresh(kind)}, fresh(kind))


# --------------------------------------------------------------------- where the weights lie


@pytest.mark.parametrize('key', ['state_dict', 'model', 'module', None])
@pytest.mark.parametrize('prefix', ['', 'module.', 'module.module.'])
def test_inner_keys_and_prefixes(key, prefix, tmp_path):
    weights = {prefix + k: v for k, v in fresh('classifier').items()}
    source = saved(tmp_path / 'a.pth', {key: weights, 'epoch': 3} if key else weights)
    convert_file(source, tmp_path / 'b.pth')
    assert_same(read_checkpoint(tmp_path / 'b.pth')['state_dict'], fresh('classifier'))


def test_moving_averages(tmp_path):
    plain, average = (
        fresh('classifier'),
        {f'module.{k}': v + 1 for k, v in fresh('classifier').items()},
    )
    source = saved(tmp_path / 'a.pth', dict(model=plain, model_ema=average))
    report = convert_file(source, tmp_path / 'plain.pth')
    assert '--ema takes it' in str(report)
    convert_file(source, tmp_path / 'ema.pth', ema=True)
    assert_same(read_checkpoint(tmp_path / 'plain.pth')['state_dict'], plain)
    averaged = read_checkpoint(tmp_path / 'ema.pth')['state_dict']
    assert torch.equal(averaged['head.bias'], plain['head.bias'] + 1)
    source = saved(tmp_path / 'c.pth', dict(state_dict=plain, ema_state_dict=average, meta={}))
    with pytest.raises(InputError, match='no model_ema.*leave --ema out'):
        convert_file(source, tmp_path / 'd.pth', ema=True)


def test_deepspeed_folders(tmp_path):
    step = tmp_path / 'run' / 'checkpoint-9'
    step.mkdir(parents=True)
    (tmp_path / 'run' / 'latest').write_text('checkpoint-9')
    weights = {k: v.half() for k, v in fresh('mim').items()}
    saved(step / 'mp_rank_00_model_states.pt', dict(module=weights, model_ema=fresh('mim')))
    convert_file(tmp_path / 'run', tmp_path / 'a.pth', 'official')
    assert_same(torch.load(tmp_path / 'a.pth', weights_only=True)['model'], weights)
    convert_file(tmp_path / 'run', tmp_path / 'b.pth', 'official', ema=True)
    assert_same(torch.load(tmp_path / 'b.pth', weights_only=True)['model'], fresh('mim'))


# --------------------------------------------------------------------------------------- sizes


def test_patches_of_16_px_as_published():
    ref = reference('patch14to16.pt')
    weights = {**fresh('mim'), 'patch_embed.proj.weight': ref['patch_weight_14']}
    weights['pos_embed'] = ref['pos_embed_16x16']
    result, report = convert(weights, patch_size=16)
    assert relative_error(result['patch_embed.proj.weight'], ref['patch_weight_16']) < 1e-5
    assert relative_error(result['pos_embed'], ref['pos_embed_14x14']) < 1e-5
    assert report.resized['pos_embed'] == ((1, 257, 32), (1, 197, 32), 'bicubic')
    # Half precision: the kernel alone ends in fp32, as in the published file.
    halves = {k: v.half() for k, v in weights.items()}
    result, report = convert(halves, patch_size=16)
    dtypes = {k: v.dtype for k, v in result.items()}
    assert dtypes.pop('patch_embed.proj.weight') == torch.float32
    assert set(dtypes.values()) == {torch.float16}
    assert list(report.cast) == ['patch_embed.proj.weight']


def test_position_embeddings_are_bicubic_in_fp32():
    weights = {k: v.half() for k, v in fresh('classifier').items()}
    result, report = convert(weights, img_size=(84, 112))
    grid = weights['pos_embed'][:, 1:].float().reshape(1, 4, 4, DIM).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(6, 8), mode='bicubic', align_corners=False)
    expected = grid.permute(0, 2, 3, 1).reshape(1, 48, DIM)
    assert result['pos_embed'].dtype == torch.float16
    assert relative_error(result['pos_embed'][:, 1:], expected) < 1e-3
    assert torch.equal(result['pos_embed'][:, :1], weights['pos_embed'][:, :1])
    assert report.resized['pos_embed'][:2] == ((1, 17, DIM), (1, 49, DIM))
    assert report.kept == len(weights) - 1
    same, _ = convert(weights, grid=(6, 8))
    assert torch.equal(same['pos_embed'], result['pos_embed'])


def test_a_resized_classifier_computes_what_the_model_would(tmp_path):
    """Resizing ahead of time equals the resizing on the fly."""
    weights = fresh('classifier')
    sizes = dict(embed_dim=DIM, depth=2, num_heads=4, mlp_dim=48, num_classes=9)
    image = torch.randn(1, 3, 84, 84)
    outputs = []
    for side in (56, 84):
        model = EVAVisionTransformer('giant', **sizes, img_size=side).eval()
        state, _ = convert(weights, img_size=(side, side))
        model.load_state_dict(state, strict=True)
        outputs.append(model(image))
    assert relative_error(outputs[1], outputs[0]) < 1e-5


def image_model_of(ref):
    """Published names of an image model with the reference's patch and position embedding."""
    image = ref['image_checkpoint']['model']
    video = ref['checkpoint']['model']
    return {k: image.get(k, v) for k, v in video.items()}


def test_image_to_video_as_published():
    ref = reference('video_tiny.pt')
    weights = image_model_of(ref)
    frames = ref['config']['num_frames']
    with pytest.raises(InputError, match='head of the image model is of other classes'):
        convert(weights, frames=frames)
    result, report = convert(weights, 'official', frames=frames, drop_head=True)
    expected = ref['expected_from_image']
    assert report.kind == 'video'
    assert torch.equal(result['pos_embed'], expected['pos_embed'])
    assert torch.equal(result['patch_embed.proj.weight'], expected['proj'])
    assert set(report.dropped) == {'head.weight', 'head.bias'}
    ours, _ = convert(weights, 'mm', frames=frames, drop_head=True)
    assert 'backbone.blocks.0.attn.q_bias' in ours


def test_twice_the_frames_as_published():
    ref = reference('video_tiny.pt')
    weights, frames = ref['checkpoint']['model'], ref['config']['num_frames']
    result, report = convert(weights, 'official', frames=2 * frames, from_frames=frames)
    assert relative_error(result['pos_embed'], ref['expected_pos_embed_double_frames']) < 1e-6
    assert report.resized['pos_embed'][2] == 'trilinear'
    with pytest.raises(InputError, match='not one of 224 px.*--from-frames'):
        convert(weights, frames=2 * frames)


def test_frames_of_published_sizes_are_known():
    """8 frames of 16 x 16 patches, as in eva_video_k722.pth."""
    weights = {**fresh('video'), 'pos_embed': torch.randn(1, 1 + 8 * 256, DIM)}
    result, _ = convert(weights, 'official', frames=16)
    assert result['pos_embed'].shape == (1, 1 + 16 * 256, DIM)


def test_pretraining_to_video_with_tubelets():
    weights = fresh('mim')
    with pytest.raises(InputError) as error:
        convert(weights, frames=4)
    text = str(error.value)
    assert '5 names are unknown in a video checkpoint' in text
    assert 'mask_token: 1 x 1 x 32' in text
    assert '--drop-pretraining-parts' in text
    options = dict(frames=4, tubelet_size=2, drop_pretraining_parts=True)
    result, report = convert(weights, 'official', **options, patch_size=16, img_size=(64, 64))
    kernel = result['patch_embed.proj.weight']
    assert kernel.shape == (DIM, 3, 2, 16, 16)
    flat, _ = convert(weights, patch_size=16, img_size=(64, 64))
    assert torch.allclose(kernel.sum(2), flat['patch_embed.proj.weight'], atol=1e-6)
    assert torch.equal(result['pos_embed'][:, 1:17], result['pos_embed'][:, 17:])
    assert {'norm.weight', 'mask_token', 'lm_head.bias'} < set(report.dropped)


def test_relative_tables_of_a_detector():
    """Those of the global block alone; its pretraining grid stays."""
    weights = fresh('detector')
    longest = {k: v for k, v in weights.items() if 'rel_pos' in k and len(v) == 15}
    assert len(longest) == 2
    result, report = convert(
        weights, 'official', img_size=(256, 192), rel_pos_rule='geometric_detector'
    )
    assert {k: len(result[k]) for k in longest} == {
        'backbone.net.blocks.3.attn.rel_pos_h': 31,
        'backbone.net.blocks.3.attn.rel_pos_w': 23,
    }
    assert set(report.resized) == set(longest)
    assert {how for *_, how in report.resized.values()} == {'geometric_detector'}


def test_joint_tables_of_beit():
    """Offsets are resized on both axes by the geometric rule; indices go, as in the loaders."""
    weights = {f'backbone.{k}': v for k, v in fresh('mim').items() if 'lm_head' not in k}
    for name in ('norm.weight', 'norm.bias', 'mask_token'):
        del weights[f'backbone.{name}']
    table = torch.randn(49 + 3, 4)
    for i in range(2):
        weights[f'backbone.blocks.{i}.attn.relative_position_bias_table'] = table
        weights[f'backbone.blocks.{i}.attn.relative_position_index'] = torch.arange(4)
    weights['decode_head.query_feat.weight'] = torch.randn(4, DIM)
    result, report = convert(weights, grid=(6, 6), allow_partial=True)
    resized = result['backbone.blocks.1.attn.relative_position_bias_table']
    assert resized.shape == (121 + 3, 4)
    assert torch.equal(resized[-3:], table[-3:])
    # The middle offset is at a knot of the spline.
    assert torch.allclose(resized[60], table[24], atol=1e-5)
    assert 'backbone.blocks.0.attn.relative_position_index' in report.dropped


# ---------------------------------------------------------------------------------------- head


def test_heads_of_other_sizes():
    weights = fresh('classifier')
    with pytest.raises(InputError) as error:
        convert(weights, num_classes=5)
    assert 'the head is of 9 classes, not of 5' in str(error.value)
    assert 'head.weight: 9 x 32' in str(error.value)
    result, report = convert(weights, drop_head=True)
    assert set(weights) - set(result) == set(report.dropped) == {'head.weight', 'head.bias'}
    with pytest.raises(InputError, match='no head of classes is in this mim checkpoint'):
        convert(fresh('mim'), drop_head=True)


def test_a_number_of_classes_needs_a_head():
    with pytest.raises(InputError, match='no head of classes is in this mim checkpoint'):
        convert(fresh('mim'), num_classes=9)
    with pytest.raises(InputError, match='--drop-head or --num-classes'):
        convert(fresh('classifier'), num_classes=9, drop_head=True)
    # A head as wide as CLIP's projection, after the class token's norm, may be one of classes.
    with pytest.raises(InputError, match='--kind classifier takes its head as one of classes'):
        convert(fresh('clip_vision'), num_classes=1024)
    options = dict(kind='classifier', num_classes=1024, head_rows=[5, 2])
    with pytest.raises(InputError, match='the head is of 2 classes, not of 1024'):
        convert(fresh('clip_vision'), **options)
    result, _ = convert(fresh('clip_vision'), **{**options, 'num_classes': 2})
    assert torch.equal(result['head.bias'], fresh('clip_vision')['head.bias'][[5, 2]])


@pytest.mark.parametrize('form', ['mask.npy', 'mask.json', 'mask.txt', 'index.npy', 'index.txt'])
def test_rows_of_a_head_by_mask_and_by_index(form, tmp_path):
    mask = np.zeros(9, bool)
    mask[[1, 4, 5]] = True
    index = np.array([5, 1, 4])
    values = mask if form.startswith('mask') else index
    path = tmp_path / form
    if form.endswith('npy'):
        np.save(path, values)
    elif form.endswith('json'):
        path.write_text(json.dumps(values.tolist()))
    else:
        path.write_text('\n'.join(str(value) for value in values))
    source = saved(tmp_path / 'a.pth', fresh('classifier'))
    convert_file(source, tmp_path / 'b.pth', 'official', head_rows=path, num_classes=3)
    result = torch.load(tmp_path / 'b.pth', weights_only=True)['model']
    rows = [1, 4, 5] if form.startswith('mask') else [5, 1, 4]
    for name in ('head.weight', 'head.bias'):
        assert torch.equal(result[name], fresh('classifier')[name][rows])


def test_zeros_and_ones_are_a_mask(tmp_path):
    (tmp_path / 'mask.txt').write_text('1 0 1 1')
    assert load_head_rows(tmp_path / 'mask.txt').dtype == torch.bool
    (tmp_path / 'rows.txt').write_text('1 0')
    assert load_head_rows(tmp_path / 'rows.txt').tolist() == [1, 0]


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        (torch.ones(8, dtype=torch.bool), 'a mask of 8 for a head of 9 classes'),
        (torch.tensor([0, 9]), 'rows 0 ... 9 of a head of 9 classes'),
        (torch.zeros(9, dtype=torch.bool), 'rows none of a head'),
        (torch.rand(9), 'expected a list of indices or a boolean mask'),
        (torch.zeros(3, 3, dtype=torch.long), 'got shape 3 x 3'),
    ],
)
def test_rows_that_do_not_fit(rows, message):
    with pytest.raises(InputError, match=message):
        convert(fresh('classifier'), head_rows=rows)


def test_another_order_of_rows_is_told():
    result, report = convert(fresh('classifier'), head_rows=list(range(8, -1, -1)))
    assert torch.equal(result['head.bias'], fresh('classifier')['head.bias'].flip(0))
    assert report.resized['head.bias'] == ((9,), (9,), '9 of 9 classes')
    assert report.kept == len(result) - 2


def test_rows_of_background_stay():
    weights = fresh('detector')
    result, _ = convert(weights, 'official', head_rows=[3, 0], num_classes=2)
    name = 'roi_heads.box_predictor.0.cls_score.weight'
    assert torch.equal(result[name], weights[name][[3, 0, 5]])
    name = 'roi_heads.mask_head.predictor.weight'
    assert torch.equal(result[name], weights[name][[3, 0]])
    name = 'roi_heads.box_predictor.2.fed_loss_cls_weights'
    assert torch.equal(result[name], weights[name][[3, 0]])
    name = 'decode_head.cls_embed.bias'
    result, _ = convert(fresh('segmentor'), head_rows=[2])
    assert torch.equal(result[name], fresh('segmentor')[name][[2, 5]])


def test_heads_that_contradict_themselves():
    weights = fresh('detector')
    name = 'roi_heads.mask_head.predictor.weight'
    weights[name] = weights[name][:4]
    with pytest.raises(InputError, match='differ in their classes'):
        convert(weights)


def test_class_names(tmp_path):
    source = saved(tmp_path / 'a.pth', dict(model=fresh('detector')))
    names = tmp_path / 'names.txt'
    names.write_text('cat\ndog\ntraffic light\ncup\nfork\n')
    convert_file(source, tmp_path / 'b.pth', classes=names)
    expected = ('cat', 'dog', 'traffic light', 'cup', 'fork')
    assert read_checkpoint(tmp_path / 'b.pth')['meta'] == dict(dataset_meta=dict(classes=expected))
    # They travel on, into safetensors as well.
    convert_file(tmp_path / 'b.pth', tmp_path / 'c.safetensors', 'safetensors')
    meta = read_checkpoint(tmp_path / 'c.safetensors')['meta']['dataset_meta']
    assert meta == dict(classes=list(expected))
    names.write_text('cat\ndog\n')
    with pytest.raises(InputError, match='2 class names for a head of 5 classes'):
        convert_file(source, tmp_path / 'd.pth', classes=names)
    with pytest.raises(InputError, match='80 class names for a head of 5 classes'):
        convert_file(source, tmp_path / 'd.pth', dataset='mmdet.datasets.CocoDataset')
    with pytest.raises(InputError, match='--dataset mmdet.datasets.Nothing: expected the dotted'):
        convert_file(source, tmp_path / 'd.pth', dataset='mmdet.datasets.Nothing')
    assert 'no class names' in str(convert_file(source, tmp_path / 'e.pth'))


@pytest.mark.parametrize('kind', ['detector', 'segmentor'])
@pytest.mark.parametrize(
    ('rows', 'kept'), [('3 0', 'da'), ('4 3 2 1 0', 'edcba'), ('0 1 1 0 1', 'bce')]
)
def test_class_names_follow_the_rows(kind, rows, kept, tmp_path):
    palette = [[i, i, i] for i in range(5)]
    meta = dict(dataset_meta=dict(classes=tuple('abcde'), palette=palette, task_name='test'))
    source = saved(tmp_path / 'a.pth', dict(state_dict=fresh(kind), meta=meta))
    (tmp_path / 'rows.txt').write_text(rows)
    convert_file(source, tmp_path / 'b.pth', head_rows=tmp_path / 'rows.txt')
    result = read_checkpoint(tmp_path / 'b.pth')
    expected = ['abcde'.index(name) for name in kept]
    assert result['meta']['dataset_meta'] == dict(
        classes=tuple(kept), palette=[palette[i] for i in expected], task_name='test'
    )
    name = {
        'detector': 'roi_head.mask_head.conv_logits.bias',
        'segmentor': 'decode_head.cls_embed.bias',
    }[kind]
    official = {'detector': 'roi_heads.mask_head.predictor.bias'}.get(kind, name)
    assert torch.equal(result['state_dict'][name][: len(kept)], fresh(kind)[official][expected])
    # Without the head there is nothing to name.
    report = convert_file(source, tmp_path / 'c.pth', drop_head=True)
    assert 'the names of 5 classes went with the head' in report.notes
    assert read_checkpoint(tmp_path / 'c.pth')['meta'] == {}
    meta['dataset_meta']['classes'] = tuple('abcd')
    source = saved(tmp_path / 'a.pth', dict(state_dict=fresh(kind), meta=meta))
    with pytest.raises(InputError, match='4 class names for a head of 5 classes'):
        convert_file(source, tmp_path / 'd.pth', head_rows=tmp_path / 'rows.txt')


def test_names_of_coco(tmp_path):
    weights = fresh('detector')
    for name, extra in (
        ('cls_score.weight', 1),
        ('cls_score.bias', 1),
        ('fed_loss_cls_weights', 0),
    ):
        for stage in range(3):
            key = f'roi_heads.box_predictor.{stage}.{name}'
            weights[key] = torch.randn(80 + extra, *weights[key].shape[1:])
    for part in ('weight', 'bias'):
        key = f'roi_heads.mask_head.predictor.{part}'
        weights[key] = torch.randn(80, *weights[key].shape[1:])
    source = saved(tmp_path / 'a.pth', dict(model=weights))
    convert_file(source, tmp_path / 'b.pth', dataset='mmdet.datasets.CocoDataset')
    meta = read_checkpoint(tmp_path / 'b.pth')['meta']['dataset_meta']
    assert meta['classes'][0] == 'person'
    assert len(meta['palette']) == 80


def test_names_in_files_of_mmcv_1(tmp_path):
    meta = dict(CLASSES=('a', 'b', 'c', 'd', 'e'), PALETTE=[[0, 0, 0]] * 5, mmcv_version='1.6.2')
    source = saved(tmp_path / 'a.pth', dict(state_dict=fresh('segmentor'), meta=meta))
    convert_file(source, tmp_path / 'b.pth')
    kept = read_checkpoint(tmp_path / 'b.pth')['meta']['dataset_meta']
    assert kept == dict(classes=meta['CLASSES'], palette=meta['PALETTE'])


# ------------------------------------------------------------------------- never in silence


def test_unknown_names_are_listed():
    weights = {**fresh('classifier'), 'blocks.0.attn.k_norm.weight': torch.ones(8)}
    weights['blocks.1.attn.k_norm.weight'] = torch.ones(8)
    with pytest.raises(InputError) as error:
        convert(weights)
    assert '2 names are unknown in a classifier checkpoint' in str(error.value)
    assert 'blocks.#.attn.k_norm.weight: 8 (2)' in str(error.value)
    result, report = convert(weights, drop=['*.k_norm.*'])
    assert_same(result, fresh('classifier'))
    assert len(report.dropped) == 2
    result, report = convert(weights, allow_unknown=True)
    assert_same(result, weights)
    assert '2 unknown names go on' in str(report)
    with pytest.raises(InputError, match='--drop nothing. matches none'):
        convert(weights, drop=['nothing*'])


@pytest.mark.parametrize('lost', ['blocks.1.mlp.fc2.bias', 'pos_embed', 'patch_embed.proj.weight'])
def test_lost_parts_are_listed(lost):
    weights = fresh('classifier')
    del weights[lost]
    message = f'1 parts that the model needs are missing:\n  {lost}'
    with pytest.raises(InputError, match=message):
        convert(weights)


# A name that a file may lack -> what the report says then.
LEGITIMATE = {('mim', 'mask_token'): 'the file is without mask_token'}


@pytest.mark.parametrize('kind', sorted(PARTS))
def test_no_name_is_lost_in_silence(kind):
    weights = fresh(kind)
    for lost in weights:
        rest = {k: v for k, v in weights.items() if k != lost}
        if (kind, lost) in LEGITIMATE:
            assert LEGITIMATE[kind, lost] in convert(rest)[1].notes
            continue
        with pytest.raises(InputError, match='missing|unknown'):
            convert(rest)


@pytest.mark.parametrize(
    ('kind', 'lost', 'told'),
    [
        ('classifier', r'.*\.[qv]_bias', None),
        ('classifier', r'.*\.norm1\..*', None),
        ('classifier', r'fc_norm\..*', None),
        ('classifier', r'head\..*', 'head'),
        ('detector', r'proposal_generator\..*', None),
        ('detector', r'backbone\.simfp_3\..*', None),
        ('detector', r'roi_heads\.box_predictor\.2\..*', None),
        ('detector', r'roi_heads\..*', None),
        ('detector', r'roi_heads\.mask_head\..*', 'mask head, mask predictor'),
        ('detector', r'.*\.rel_pos_.', 'relative position tables'),
        ('segmentor', r'backbone\.spm\..*', None),
        ('segmentor', r'backbone\.interactions\.2\..*', None),
        ('segmentor', r'decode_head\..*', 'decode_head, class scores'),
        ('clip', r'text\..*', 'text tower'),
        ('clip', r'text\.transformer\..*', None),
        ('mae', r'decoder_blocks\..*', None),
        ('video', r'fc_norm\..*', 'fc_norm'),
    ],
)
def test_no_part_is_lost_in_silence(kind, lost, told):
    """Each is an error, or legitimate and told."""
    rest = {k: v for k, v in fresh(kind).items() if not re.fullmatch(lost, k)}
    assert len(rest) < len(fresh(kind))
    if told:
        assert convert(rest)[1].notes == [f'the file is without {told}']
        return
    with pytest.raises(InputError, match='(?s)needs are missing.*--allow-partial'):
        convert(rest)
    result, report = convert(rest, 'official', allow_partial=True)
    assert_same(result, rest)
    assert 'parts that the model needs are missing' in str(report)


@pytest.mark.parametrize(('size', 'depth'), [('giant', 40), ('large', 24)])
@pytest.mark.parametrize('lost', [1, 3])
def test_lost_last_blocks_of_published_sizes(size, depth, lost):
    with torch.device('meta'):
        weights = EVAVisionTransformer(size, num_classes=7).state_dict()
    width = len(weights['patch_embed.proj.weight'])
    _, report = convert(weights)
    assert f'model: {depth} blocks, width {width}, 14 px patches' in str(report)
    last = tuple(f'blocks.{depth - i}.' for i in range(1, lost + 1))
    rest = {k: v for k, v in weights.items() if not k.startswith(last)}
    message = f'{depth - lost} blocks of width {width}, where the published model has {depth}'
    with pytest.raises(InputError, match=message):
        convert(rest)
    _, report = convert(rest, allow_partial=True)
    assert f'{depth - lost} blocks, width {width}' in report.model
    assert message in str(report)


def test_lost_parts_are_told_with_their_numbers():
    lost = r'roi_heads\.box_predictor\.2\..*|.*simfp_3\..*'
    rest = {k: v for k, v in fresh('detector').items() if not re.fullmatch(lost, k)}
    with pytest.raises(InputError) as error:
        convert(rest)
    lines = str(error.value).splitlines()
    assert '  backbone.simfp_3.#.norm.weight (2)' in lines
    assert '  roi_heads.box_predictor.2.bbox_pred.bias' in lines


def test_depth_and_patches_of_the_result_are_told():
    report = convert(fresh('mae'), patch_size=28)[1]
    assert report.model == '2 blocks, width 32, 28 px patches, 2 decoder blocks'
    report = convert(fresh('clip'))[1]
    assert report.model == '2 blocks, width 32, 14 px patches, 2 text blocks'


@pytest.mark.parametrize('kind', ['mim', 'classifier'])
def test_weights_inside_another_model(kind):
    """`backbone.` in front, as in a model of another framework."""
    weights = {f'backbone.{k}': v for k, v in fresh(kind).items()}
    result, report = convert(weights)
    assert_same(result, fresh(kind))
    assert report.kind == kind
    assert report.notes == [f'`backbone.` was taken off {len(weights)} names']
    with pytest.raises(InputError, match='1 names are unknown in a .* checkpoint:\n  head.fc.bias'):
        convert({**weights, 'head.fc.bias': torch.zeros(9)})
    with pytest.raises(InputError, match='names are unknown in a mim checkpoint:\n  net.cls_token'):
        convert({f'net.{k}': v for k, v in fresh('mim').items()})


def test_nothing_beside_a_tower_of_open_clip_goes_in_silence():
    tower = {f'visual.trunk.{k}': v for k, v in fresh('clip_vision').items()}
    assert_same(convert(tower)[0], fresh('clip_vision'))
    with pytest.raises(InputError, match='1 names are unknown in a clip checkpoint:\n  bystander'):
        convert({**tower, 'bystander': torch.zeros(1)})
    with pytest.raises(InputError, match='(?s)needs are missing.*text.positional_embedding'):
        convert({**tower, 'logit_scale': torch.zeros(())})


def resnet():
    from torchvision.models import resnet18

    return resnet18().state_dict()


@pytest.mark.parametrize(
    ('content', 'options', 'message'),
    [
        (resnet, {}, 'no weights of EVA: 122 names such as conv1.weight'),
        (resnet, dict(kind='classifier'), 'no weights of EVA'),
        (
            lambda: fresh('detector'),
            dict(kind='classifier'),
            r'the weights are of a detector \(names such as .*\), not of a classifier',
        ),
        (lambda: {'a': 1}, {}, r'no weights: expected names and tensors, found a \(int\)'),
        (dict, {}, 'no weights: expected names and tensors, found nothing'),
        (dict, dict(to='onnx'), '--to onnx: expected one of mm, official, timm, safetensors'),
        (dict, dict(kind='resnet'), '--kind resnet: expected one of mim, mae, classifier'),
        (dict, dict(names='hub'), '--names hub: expected one of mm, official, timm'),
        (dict, dict(dtype='int8'), '--dtype int8: expected one of float32, float16, bfloat16'),
        ('some words', {}, 'a text file, beginning with'),
        ('<html>login</html>', {}, 'it is a web page'),
        (lambda: fresh('detector'), dict(to='timm'), 'timm has no EVA model of kind'),
        (lambda: fresh('mim'), dict(ema=True), '--ema: there is no model_ema, but'),
        (lambda: fresh('mim'), dict(img_size='100'), '100 x 100 is not divisible into patches'),
        (lambda: fresh('mim'), dict(img_size='a'), '--img-size a: expected a number'),
        (lambda: fresh('mim'), dict(img_size='56', grid='4'), 'give --img-size or --grid'),
        (lambda: fresh('mim'), dict(rel_pos_rule='linear'), 'give --img-size or --grid as well'),
        (lambda: fresh('mim'), dict(tubelet_size=2), 'give --frames as well'),
        (
            lambda: fresh('mim'),
            dict(from_frames=2, frames=4),
            '--from-frames: this is the .* image',
        ),
        (lambda: fresh('mim'), dict(head_rows='gone.npy'), 'gone.npy does not exist'),
        (lambda: fresh('mim'), dict(num_classes=-1), '--num-classes -1: expected a positive'),
        (lambda: fresh('detector'), dict(frames=8), 'no image model to start from'),
        (
            lambda: fresh('video'),
            dict(patch_size=16, from_frames=8),
            'convert the image checkpoint',
        ),
        (
            lambda: {**fresh('mim'), 'mask_token': torch.full((1,), 1e6)},
            dict(dtype='float16'),
            'beyond',
        ),
    ],
)
def test_each_mistake_has_one_clear_line(content, options, message, tmp_path):
    source, folder = tmp_path / 'source.pth', tmp_path / 'new'
    if isinstance(content, str):
        source.write_text(content)
    else:
        torch.save(content(), source)
    with pytest.raises(InputError, match=message) as error:
        convert_file(source, folder / 'out.pth', **options)
    assert '\n' not in str(error.value)
    assert list(tmp_path.iterdir()) == [source]


# --------------------------------------------------------------------------- reports, writing


def test_the_report_says_what_was_done(tmp_path):
    weights = {**fresh('video'), 'pos_embed': torch.randn(1, 1 + 8 * 256, DIM)}
    source = saved(tmp_path / 'k722.pth', dict(model=weights))
    rows = tmp_path / 'rows.txt'
    rows.write_text('0 3 8')
    report = str(
        convert_file(source, tmp_path / 'b.pth', frames=16, head_rows=rows, dtype='bfloat16')
    )
    lines = [line.strip() for line in report.splitlines()]
    assert 'kind: video' in lines
    assert f'renamed: {len(weights)}' in lines
    assert 'head.weight -> cls_head.fc_cls.weight' in lines
    assert 'pos_embed: 1 x 2049 x 32 -> 1 x 4097 x 32, trilinear' in lines
    assert 'head.weight: 9 x 32 -> 3 x 32, 3 of 9 classes' in lines
    assert 'dropped: none' in lines
    assert f'float32 -> bfloat16 ({len(weights)})' in lines


def test_what_is_there_stays(tmp_path):
    source = saved(tmp_path / 'a.pth', fresh('mim'))
    (tmp_path / 'b.pth').write_text('precious')
    with pytest.raises(InputError, match='b.pth exists; --force replaces it'):
        convert_file(source, tmp_path / 'b.pth')
    assert (tmp_path / 'b.pth').read_text() == 'precious'
    convert_file(source, tmp_path / 'b.pth', force=True)
    assert_same(read_checkpoint(tmp_path / 'b.pth')['state_dict'], fresh('mim'))
    convert_file(source, source, 'official', force=True)  # in place, while it is mapped
    assert_same(torch.load(source, weights_only=True)['model'], fresh('mim'))
    with pytest.raises(InputError, match='is a folder'):
        convert_file(source, tmp_path)
    with pytest.raises(InputError, match='should end in .safetensors'):
        convert_file(source, tmp_path / 'c.pth', 'safetensors')


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    source = saved(tmp_path / 'a.pth', fresh('mim'))

    class Full:
        free = 10

    monkeypatch.setattr(files.shutil, 'disk_usage', lambda folder: Full)
    with pytest.raises(InputError, match='GB, 0.00 GB are free'):
        convert_file(source, tmp_path / 'b.pth')
    monkeypatch.undo()

    def fail(content, file):
        file.write(b'half')
        raise OSError('No space left on device')

    monkeypatch.setattr(files.torch, 'save', fail)
    with pytest.raises(InputError, match='b.pth cannot be written: No space left on device'):
        convert_file(source, tmp_path / 'b.pth')
    assert list(tmp_path.iterdir()) == [source]


# ---------------------------------------------------------------------------------------- tool

TOOL = str(ROOT / 'tools' / 'convert.py')


def run_tool(*args, **environment):
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


BLOCKED = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmdet', 'timm', 'open_clip'):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_the_tool_needs_torch_alone(tmp_path):
    (tmp_path / 'run.py').write_text(BLOCKED)
    source = saved(tmp_path / 'a.pth', dict(model=fresh('video')))
    args = (tmp_path / 'run.py', TOOL, source, tmp_path / 'b.pth')
    status, out, err = run_tool(*args)
    assert status == 0, err
    assert 'blocks.* -> backbone.blocks.*' in out
    assert_same(
        read_checkpoint(tmp_path / 'b.pth')['state_dict'], TABLES['video'].to_mm(fresh('video'))
    )
    status, out, err = run_tool(*args)
    assert status == 1
    assert err == f'convert.py: {tmp_path / "b.pth"} exists; --force replaces it\n'


def test_help_is_quick():
    status, out, err = run_tool('-X', 'importtime', TOOL, '--help')
    assert status == 0
    assert '--head-rows FILE' in out
    imported = set(re.findall(r'\|\s+([\w.]+)$', err, re.MULTILINE))
    assert 'argparse' in imported
    assert not imported & {'torch', 'mmengine', 'eva_mm'}


def test_checkpoints_of_mmengine_are_read(tmp_path):
    """Where it is installed; they hold its log of scalars."""
    from mmengine.logging import HistoryBuffer

    log = dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])})
    content = dict(
        state_dict=TABLES['video'].to_mm(fresh('video')), message_hub=log, meta=dict(iter=3)
    )
    source = saved(tmp_path / 'iter_3.pth', content)
    status, _, err = run_tool(TOOL, source, tmp_path / 'b.pth', '--to', 'official')
    assert status == 0, err
    assert_same(torch.load(tmp_path / 'b.pth', weights_only=True)['model'], fresh('video'))
