"""Benchmarks of whole steps: that they compare what they say, and count what they charge."""

import itertools
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    _steps,
    attention,
    classification_step,
    detector_step,
    start_up,
    video_step,
    vitdet_backbone,
)
from benchmarks.common import REGISTRY
from benchmarks.measuring import ceilings_note, in_child
from eva_mm.vit import get_size

ROOT = Path(__file__).resolve().parents[1]
needs_mmdet = pytest.mark.skipif(find_spec('mmdet') is None, reason='needs mmdet')


def options(**kwargs):
    return dict(
        device='cpu', batch=1, repeats=1, compile=False, depths=(1,), profile=False, **kwargs
    )


# ---------------------------------------------------------------------------------- deep from few


def test_a_depth_is_computed_from_two_or_taken_as_measured():
    assert _steps.at_depth({1: 7.0, 2: 9.0}, 40) == 7 + 39 * 2
    assert _steps.at_depth({12: 5.0}, 12) == 5
    assert _steps.figures_at_depth(
        dict(a={'1': dict(seconds=1.0, peak=10), '2': dict(seconds=3.0, peak=10)}), 12
    ) == dict(a=dict(seconds=23.0, peak=10))


@pytest.mark.parametrize(
    ('depth', 'flops', 'device', 'measured'),
    [(40, 2e12, 'cpu', (1, 2)), (40, 2e12, 'cuda', (40,)), (12, 5e11, 'cpu', (12,)),
     (2, 2e12, 'cpu', (2,))],
)  # fmt: skip
def test_only_what_is_slow_on_a_cpu_is_computed(depth, flops, device, measured):
    assert _steps.depths_to_measure(depth, flops, device) == measured


def closed_form(size, tokens):
    """FLOPs of a forward pass: products with weights, and attention."""
    width, mlp = size.embed_dim, size.mlp_dim
    return 2 * size.depth * tokens * (4 * width**2 + 2 * width * mlp + 2 * tokens * width)


def test_flops_are_those_of_the_closed_form():
    images = classification_step.step_flops('giant', 336)
    clips = video_step.step_flops('base', 16, 224)
    for flops, size, tokens in ((images, 'giant', 577), (clips, 'base', 3137)):
        forward = closed_form(get_size(size), tokens)
        assert flops['inference'] == pytest.approx(forward, rel=0.02)
        assert flops['training'] == pytest.approx(3 * forward, rel=0.02)
        assert flops['training, recomputed'] == flops['training']


# ---------------------------------------------------------------------------------- classification


@pytest.mark.parametrize('size', ['tiny', 'large'])
def test_timm_gives_the_same_logits(size):
    pytest.importorskip('timm')
    assert classification_step.check_agreement(size, 56, 'cpu') < 1e-5


def test_a_baseline_that_differs_is_refused(monkeypatch):
    pytest.importorskip('timm')
    build = classification_step.build

    def other(whose, *args):
        model = build(whose, *args)
        if whose == 'timm':
            model.blocks[0].mlp.act = torch.nn.ReLU()
        return model

    monkeypatch.setattr(classification_step, 'build', other)
    with pytest.raises(RuntimeError, match='outputs differ by'):
        classification_step.check_agreement('tiny', 56, 'cpu')


def test_a_classifier_is_measured_beside_timms():
    pytest.importorskip('timm')
    given = options(timm=True, modes=classification_step.MODES)
    result = in_child('classification_step', 'tiny', '56', json.dumps(given))
    assert list(result) == list(classification_step.MODES)
    weights = 4 * sum(p.numel() for p in classification_step.build('ours', 'tiny', 56, 1, 'cpu')
                      .parameters())  # fmt: skip
    for mode, each in result.items():
        assert set(each) == {'ours', 'timm'}
        for figures in each.values():
            assert figures['1']['seconds'] > 0
            if mode != 'inference':  # weights, gradients and two moments
                assert figures['1']['peak'] > 3 * weights


def test_without_timm_its_columns_are_empty(monkeypatch):
    monkeypatch.setattr(classification_step, 'find_spec', lambda name: None)
    monkeypatch.setattr(classification_step, 'ceilings_note', lambda *args: (1e11, 'Ceilings.'))
    seconds = {'ours': {'12': dict(seconds=0.5, peak=2**30)}}
    monkeypatch.setattr(
        classification_step, 'in_child', lambda *args: dict.fromkeys(classification_step.MODES,
                                                                    seconds)
    )  # fmt: skip
    (table,) = classification_step.classification_step(sizes=('tiny',), sides=(224,))
    row = dict(zip(table.header, table.rows[0]))
    assert (row['batch'], row['ours, images/s'], row['ours, GiB']) == (2, '4', '1')
    assert row['timm, images/s'] == row['times as fast'] == row['timm, GiB'] == ''
    assert any('timm is not installed' in note for note in table.notes)


def test_batches_hold_about_as_many_tokens():
    assert [classification_step.batch_of(side, 'cpu') for side in (224, 336, 560)] == [2, 1, 1]
    assert [classification_step.batch_of(side, 'cuda') for side in (224, 336, 560)] == [32, 14, 5]


# ------------------------------------------------------------------------------------------- video


def test_the_explicit_attention_agrees():
    assert video_step.check_agreement('tiny', 2, 32, 'cpu') < 1e-5


@pytest.mark.skipif(find_spec('mmaction') is None, reason='needs mmaction2')
def test_the_video_benchmark_runs_the_video_model():
    """The core alone makes the same tokens of a clip as the backbone of the leaf configs."""
    import eva_mm.video  # noqa: F401  before mmaction
    from eva_mm.video.backbone import EVAVideoTransformer

    plain = video_step.build('tiny', 3, 32, 2, 'cpu')
    model = EVAVideoTransformer('tiny', depth=2, num_frames=3, img_size=32)
    for param in plain.parameters():
        torch.nn.init.normal_(param, std=0.1)
    weights = plain.state_dict()
    weights['patch_embed.proj.weight'] = weights['patch_embed.proj.weight'][:, :, None]
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    clip = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        tokens = plain.forward_features(clip)[:, 1:]
        expected = model(clip).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)


def test_a_clip_needs_less_memory_than_its_scores():
    given = options(frames=8, side=224, modes=('inference',))
    ways = in_child('video_step', 'tiny', json.dumps(given))['inference']
    tokens, heads = 8 * 14**2 + 1, get_size('tiny').num_heads
    saved = ways['explicit']['1']['peak'] - ways['ours']['1']['peak']
    assert saved > 0.8 * 4 * heads * tokens**2


# -------------------------------------------------------------------------- detector's backbone


@needs_mmdet
@pytest.mark.parametrize('way', vitdet_backbone.WAYS)
def test_the_backbone_benchmark_runs_the_detectors_backbone(way):
    """The core alone makes the same map of an image, by ours and by explicit scores."""
    from eva_mm.detection.backbone import EVAViTDet

    plain = vitdet_backbone.build_backbone('tiny', 128, way, 'cpu')
    model = EVAViTDet('tiny', img_size=128)
    assert [b.window_size for b in plain.blocks] == [b.window_size for b in model.blocks]
    for param in plain.parameters():
        torch.nn.init.normal_(param, std=0.1)
    model.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(plain(image), model(image)[0], rtol=1e-3, atol=1e-3)


def test_blocks_are_measured_with_less_memory_than_their_scores():
    result = in_child('vitdet_backbone', 'tiny', '640', json.dumps(options()))
    assert list(result) == ['blocks']
    heads, tokens = get_size('tiny').num_heads, 40**2
    assert vitdet_backbone.scores_bytes('tiny', 640, 'global') == 4 * heads * tokens**2
    assert vitdet_backbone.scores_bytes('tiny', 640, 'window') == 4 * heads * tokens * 256
    for part in vitdet_backbone.PASSES:
        for kind in vitdet_backbone.KINDS:
            assert all(found['seconds'] > 0 for found in result['blocks'][kind][part].values())
        found = result['blocks']['global'][part]
        assert found['explicit']['peak'] - found['ours']['peak'] > 4 * heads * tokens**2


def test_whole_backbones_are_measured():
    """As on a GPU, in every pass."""
    result = vitdet_backbone.measure_backbone('tiny', 64, options())
    assert list(result) == [*vitdet_backbone.PASSES, vitdet_backbone.RECOMPUTED]
    for found in result.values():
        assert set(found) == set(vitdet_backbone.WAYS)
        assert all(figures['seconds'] > 0 for figures in found.values())


def test_too_little_memory_empties_a_cell(monkeypatch):
    """And the rest of the table is there."""

    def lacking():
        raise torch.OutOfMemoryError('CUDA out of memory')

    def make_step(mode, name, depth):
        return lacking if (mode, name) == ('training', 'explicit') else lambda: None

    monkeypatch.setattr(_steps, 'Memory', lambda device: SimpleNamespace(peak=lambda: 2**30))
    monkeypatch.setattr(_steps, 'measure_time', lambda *args: 0.5)
    given = dict(options(modes=('inference', 'training')), device='cuda')
    result = _steps.measure_in_turn(make_step, ('ours', 'explicit'), given)
    figures = dict(seconds=0.5, peak=2**30)
    assert result == dict(
        inference=dict(ours={1: figures}, explicit={1: figures}),
        training=dict(ours={1: figures}, explicit={}),
    )
    found = _steps.figures_at_depth(result['training'], 1)
    assert _steps.comparison(found, ('ours', 'explicit'), 2) == ['4', '', '', '1', '', '']
    assert vitdet_backbone._if_memory_suffices(lacking) is None


def test_a_case_that_fails_leaves_the_others(capsys):
    def rows_of(size, side):
        if side == 2:
            raise RuntimeError('killed')
        return [(size, side)]

    cases = [('a', 1), ('a', 2), ('b', 3)]
    assert _steps.rows_of_all(cases, rows_of) == [('a', 1), ('b', 3)]
    assert "('a', 2): killed" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match='killed'):
        _steps.rows_of_all(cases[1:2], rows_of)


def test_a_profile_tells_shares():
    table = vitdet_backbone.profile_table('tiny', 64, options())
    for kind in vitdet_backbone.KINDS:
        rows = [row for row in table.rows if row[0] == f'{kind} block']
        assert len(rows) == vitdet_backbone.TOP_OPERATORS + 1
        assert all(row[1].startswith(('aten::', 'eva_mm::', 'autograd')) for row in rows[:2])
        assert sum(int(row[3].removesuffix(' %')) for row in rows) == pytest.approx(100, abs=6)


def test_attention_is_measured_where_kernels_serve(monkeypatch):
    def broken(*args):
        raise RuntimeError('no compiler')

    given = dict(device='cpu', dtype='float32', repeats=1)
    kernels = attention.kernels_of('cpu')
    assert list(kernels) == ['explicit', 'augmented', 'blocked']
    monkeypatch.setattr(attention, 'kernels_of', lambda device: kernels | dict(broken=broken))
    result = attention.measure(2, 2, (6, 5), given)
    rows = attention.rows_of_shape('small', result)
    assert [row[1] for row in rows] == ['explicit', 'augmented', 'blocked']
    for row in rows[1:]:
        assert all(float(cell) < 1e-5 for cell in (row[5], row[9]))


def test_ceilings_are_measured_elsewhere():
    flops, note = ceilings_note('cpu', torch.float32)
    assert flops > 1e9
    assert 'matrix product in float32' in note


def test_ways_that_differ_are_refused():
    x = torch.ones(3)
    check = vitdet_backbone.check_agreement
    equal = check(dict(explicit=(x, x), ours=(x, x + 1e-6)), 'a block', 1e-4)
    assert equal == pytest.approx(1e-6, rel=0.1)
    with pytest.raises(RuntimeError, match=r'differ by 0\.00\d+: a block'):
        check(dict(explicit=(x, x), ours=(x, x + 1e-3)), 'a block', 1e-4)


def test_a_backbone_is_the_sum_of_its_blocks(monkeypatch):
    """Of 40 blocks 30 have windows; without memory for explicit scores its cells are empty."""

    def seconds(window, whole):
        return {'window': window, 'global': whole}

    blocks = {
        kind: {
            part: {way: dict(seconds=s[kind], peak=2**30) for way, s in ways.items() if kind in s}
            for part, ways in {
                'forward': dict(explicit=seconds(2.0, 9.0), ours=seconds(1.0, 3.0)),
                'forward+backward': dict(explicit=dict(window=7.0), ours=seconds(3.0, 8.0)),
            }.items()
        }
        for kind in vitdet_backbone.KINDS
    }
    monkeypatch.setattr(vitdet_backbone, 'in_child', lambda *args: dict(blocks=blocks))
    monkeypatch.setattr(vitdet_backbone, 'backbone_flops', lambda *args: {
        'forward': 6e11, 'forward+backward': 2e12})  # fmt: skip
    rows = vitdet_backbone.rows_of('giant', 1536, options(), 1e11)
    assert [row[5:] for row in rows] == [
        ('2', '1', '2.00', '1', '1', '1.00', '', ''),
        ('7', '3', '2.33', '1', '1', '1.00', '', ''),
        ('9', '3', '3.00', '1', '1', '1.00', '', ''),
        ('', '8', '', '', '1', '', '', ''),
        ('150', '60', '2.50', '', '', '', '', '10 %'),
        ('', '170', '', '', '', '', '', '12 %'),
    ]


def test_explicit_scores_that_exceed_the_memory_are_left_out(monkeypatch):
    """16 heads of 9216 x 9216 scores in fp32 are 5.1 GiB; in training it takes five of them."""
    monkeypatch.setattr(vitdet_backbone, '_available_memory', lambda: 24 * 2**30)
    fits = vitdet_backbone.fits
    assert fits('giant', 1536, 'global', 'explicit', 'forward')
    assert not fits('giant', 1536, 'global', 'explicit', 'forward+backward')
    assert fits('giant', 1280, 'global', 'explicit', 'forward+backward')
    assert fits('giant', 1536, 'global', 'ours', 'forward+backward')


# ---------------------------------------------------------------------------------------- detector


def test_a_part_does_not_count_what_is_inside_it(monkeypatch):
    ticks = itertools.accumulate((0, 1, 10, 100, 1000, 10000))  # each reading of the clock
    monkeypatch.setattr(detector_step, 'time', SimpleNamespace(perf_counter=ticks.__next__))
    clock = detector_step.Clock('cpu')
    with clock.part('outer'):
        with clock.part('inner'):
            clock.turn('other', 'nothing')
            clock.turn('inner', 'later')
        clock.turn('inner', 'nothing')
    assert clock.seconds == dict(outer=1 + 1000, inner=10, later=100)


def test_a_deep_backbone_is_computed_from_its_two_kinds_of_block(monkeypatch):
    """Embedding 5 s, a window block 1 s, a global one 4 s; the rest stays."""

    def alone(mode, size, given, blocks):
        return {'backbone': 5.0 + sum(dict(w=1, g=4)[kind] for kind in blocks)}

    monkeypatch.setattr(detector_step, 'measure_backbone', alone)
    monkeypatch.setattr(
        detector_step,
        'measure_parts',
        lambda *args: dict(seconds={'backbone': 6.0, 'RPN': 3.0}, peak=1),
    )
    result = detector_step.measure('test', 'giant', options())
    expected = {'backbone': 5 + 30 * 1 + 10 * 4, 'RPN': 3}
    assert result == dict(seconds=expected, peak=None, computed=True)


def small_detector(monkeypatch):
    """Few proposals and classes, so that a step takes seconds."""
    build = detector_step.model_config

    def config(*args, **kwargs):
        cfg = build(*args, **kwargs)
        head = cfg.model.roi_head
        for part in (head.bbox_head, head.mask_head, head.bbox_head.loss_cls):
            if 'num_classes' in part:
                part.num_classes = 5
        if 'class_image_counts' in head.bbox_head.loss_cls:
            head.bbox_head.loss_cls.class_image_counts = [1] * 5
        cfg.model.train_cfg.rcnn[0].sampler.num = 16
        return cfg

    monkeypatch.setattr(detector_step, 'model_config', config)


@needs_mmdet
@pytest.mark.parametrize('mode', ['training', 'test'])
def test_the_parts_are_the_step(monkeypatch, mode):
    """Every part is there once."""
    small_detector(monkeypatch)
    monkeypatch.setattr('benchmarks._detector_inputs.PROPOSALS', 40)
    given = options(side=128, config=detector_step.CONFIG, masks=10)
    found = detector_step.measure_parts(mode, 'tiny', given, 'wg')
    seconds = found['seconds']
    common = {'preprocessor', 'backbone', 'pyramid', 'RPN', 'box stages', 'mask head', 'rest'}
    own = dict(
        training={'heads, backward', 'pyramid, backward', 'backbone, backward', 'update'},
        test={'NMS', 'masks into the image'},
    )
    assert set(seconds) == common | own[mode] <= set(detector_step.ORDER)
    assert all(taken > 0 for taken in seconds.values())


@needs_mmdet
def test_samplers_are_full():
    """So that a step has as many boxes and masks as one of a trained model at its most."""
    from mmdet.registry import TASK_UTILS
    from mmengine.structures import InstanceData

    from benchmarks._detector_inputs import make_data, make_objects, make_proposals

    data = make_data(1280, 1203, True)
    objects = data['data_samples'][0].gt_instances
    train_cfg = detector_step.model_config('tiny', 1280).model.train_cfg.rcnn[0]
    assigner, sampler = (TASK_UTILS.build(train_cfg[key]) for key in ('assigner', 'sampler'))
    priors = InstanceData(priors=make_proposals(make_objects(1280), 1280))
    sampled = sampler.sample(assigner.assign(priors, objects), priors, objects)
    assert (len(sampled.pos_priors), len(sampled.neg_priors)) == (128, 384)


@needs_mmdet
def test_ways_to_masks_agree_and_a_cap_bounds_them(monkeypatch):
    """The benchmark compares the masks byte by byte."""
    for module in ('detector_step', '_detector_inputs'):
        monkeypatch.setattr(f'benchmarks.{module}.PROPOSALS', 40)
    given = options(side=128, boxes=80, cap=20)
    published, ours, capped = detector_step.measure_soft_nms(given)
    assert published['boxes'] == ours['boxes'] > 60
    assert capped['boxes'] == 20
    parts = {'box stages', 'NMS', 'mask head', 'masks into the image'}
    assert all(set(way['seconds']) == parts for way in (published, ours, capped))


@needs_mmdet
def test_masks_that_differ_are_refused(monkeypatch):
    for module in ('detector_step', '_detector_inputs'):
        monkeypatch.setattr(f'benchmarks.{module}.PROPOSALS', 20)
    numbers = itertools.count()
    monkeypatch.setattr(detector_step, '_counts', lambda rle: next(numbers))
    with pytest.raises(RuntimeError, match='give different masks'):
        detector_step.measure_soft_nms(options(side=128, boxes=20, cap=10))


# ---------------------------------------------------------------------------------------- start-up


def test_a_model_without_memory_is_built_without_memory():
    ways = {way: start_up.measure(way, 'tiny') for way in start_up.builders('tiny')}
    params = {found['params'] for way, found in ways.items() if way.startswith('classifier')}
    assert params == {sum(p.numel() for p in start_up.builders('tiny')
                          ['classifier, initialised']().parameters())}  # fmt: skip
    found = in_child('start_up', 'classifier, on the meta device', 'giant')
    assert found['params'] == 1_012_555_112
    assert found['peak'] < 2**28 < 4 * found['params']


def test_commands_start(monkeypatch):
    monkeypatch.setattr(start_up, 'TOOLS', ('train',))
    names = ['python', 'import eva_mm', 'import torch', 'import torch, eva_mm.vit',
             'tools/train.py --help']  # fmt: skip
    table = start_up.start_table(1)
    assert [row[0] for row in table.rows] == names
    with pytest.raises(RuntimeError, match='no_such_module'):
        start_up.seconds_of_process('-c', 'import no_such_module')


def test_the_cores_need_pytorch_alone():
    """So that a machine with nothing else can run them."""
    code = (
        'import sys\n'
        "for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmaction', 'timm', 'cv2',\n"
        "             'open_clip', 'scipy'): sys.modules[name] = None\n"
        'from benchmarks import classification_step as images, video_step as clips\n'
        'from benchmarks import vitdet_backbone as detector\n'
        "assert clips.check_agreement('tiny', 1, 32, 'cpu') < 1e-5\n"
        "given = dict(device='cpu', batch=1, repeats=1, compile=False, depths=(1,), timm=False,\n"
        "             modes=('training',), profile=False)\n"
        "images.measure('tiny', 28, given)\n"
        "detector.measure('tiny', 64, given)\n"
        'from benchmarks import attention\n'
        "attention.measure(1, 2, (4, 4), dict(given, dtype='float32'))\n"
    )
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_all_are_registered():
    for name in (
        'classification_step', 'video_step', 'vitdet_backbone', 'detector_step', 'start_up',
    ):  # fmt: skip
        assert name in REGISTRY
