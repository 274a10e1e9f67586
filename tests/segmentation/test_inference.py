"""Segmentors in tools/infer.py and mmseg's own interfaces: maps, areas, names, drawings."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import cv2
import mmseg
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmseg.registry import MODELS

from eva_mm.demo.landscapes import draw_landscape
from eva_mm.engine import dry_run
from eva_mm.engine.inference import choose_model, infer
from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.errors import UsageError
from eva_mm.segmentation import SegClassesHook
from eva_mm.segmentation.inference import ClassMap, SegmentationPredictor

from ..helpers import ROOT, load_config

CLASSES = tuple(load_config('demo/ade20k', 'mmseg').metainfo['classes'])
PALETTE = [[20 * i, 255 - 20 * i, 128] for i in range(12)]
CASCADE = 'configs/_base_/models/pointrend_r50.py'
SIZES = [(128, 160), (100, 90), (70, 120)]


def save_model(folder, number=12, meta=True):
    """Config and checkpoint of a small random segmentor, and the model."""
    cfg = load_config('demo/ade20k', 'mmseg')
    cfg.model.decode_head.num_classes = number
    cfg.model.decode_head.loss_cls.class_weight = [1.0] * number + [0.1]
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        # Queries that choose different classes, and masks that differ from place to place.
        model.decode_head.cls_embed.weight.normal_()
        model.decode_head.mask_embed[-1].weight.mul_(20)
    checkpoint = dict(state_dict=model.state_dict())
    if meta:
        checkpoint['meta'] = dict(dataset_meta=dict(classes=CLASSES, palette=PALETTE))
    torch.save(checkpoint, folder / 'small.pth')
    cfg.dump(str(folder / 'small.py'))
    return str(folder / 'small.py'), str(folder / 'small.pth'), model.eval()


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Three pictures, one in a folder of its own, and one that is cut off."""
    root = tmp_path_factory.mktemp('photos')
    (root / 'more').mkdir()
    for index, size in enumerate(SIZES):
        image, _ = draw_landscape(size, 3, 'val', index)
        cv2.imwrite(str(root / ('a.png', 'b.jpg', 'more/c.png')[index]), image)
    (root / 'torn.png').write_bytes((root / 'a.png').read_bytes()[:900])
    return root


@torch.no_grad()
def expected_map(model, path):
    """Through the pipeline of the config, by the model itself."""
    pipeline = load_config('demo/ade20k', 'mmseg').test_pipeline
    steps = [step for step in pipeline if step.type != 'LoadAnnotations']
    sample = Compose(steps)(dict(img_path=str(path)))
    (result,) = model.test_step(pseudo_collate([sample]))
    return result.pred_sem_seg.data[0].numpy()


def read(out):
    table = json.loads((out / 'images.json').read_text())
    return table, json.loads((out / 'results.json').read_text())


@pytest.mark.parametrize('batch_size', [1, 3])
def test_folder(model, photos, tmp_path, batch_size):
    config, checkpoint, module = model
    report = infer(str(photos), f'{config}:{checkpoint}', str(tmp_path), batch_size, device='cpu')
    assert report.status == 3
    assert report.skipped.keys() == {'torn.png'}
    assert report.images == 3
    table, results = read(tmp_path)
    assert table['categories'] == [dict(id=i, name=name) for i, name in enumerate(CLASSES)]
    several = 0
    for row in table['images']:
        expected = expected_map(module, photos / row['file_name'])
        written = cv2.imread(str(tmp_path / 'maps' / f'{row["file_name"]}.png'), -1)
        assert written.dtype == np.uint8
        assert (written == expected).mean() > 0.999  # ties by rounding in batches
        values, counts = np.unique(written, return_counts=True)
        found = [r for r in results if r['image_id'] == row['id']]
        assert {r['category_id']: r['area'] for r in found} == dict(zip(values, counts))
        assert [r['area'] for r in found] == sorted(counts, reverse=True)
        assert sum(r['share'] for r in found) == pytest.approx(1)
        assert {r['file_name'] for r in found} == {row['file_name']}
        several += len(values) > 2
    assert several
    assert report.results == len(results)


def test_drawing_has_the_colours_and_a_legend(model, photos, tmp_path):
    config, checkpoint, _ = model
    infer(str(photos / 'a.png'), f'{config}:{checkpoint}', str(tmp_path), device='cpu')
    labels = cv2.imread(str(tmp_path / 'maps/a.png.png'), -1)
    drawn = cv2.imread(str(tmp_path / 'drawn/a.png'))
    # 160 x 128 px become 640 x 512; the legend stands beside.
    assert drawn.shape[0] == 512
    assert drawn.shape[1] > 640 + 50
    legend = drawn[:, 640:].reshape(-1, 3)
    shown = {tuple(PALETTE[i][::-1]) for i in np.unique(labels)}
    hidden = {tuple(PALETTE[i][::-1]) for i in range(12)} - shown
    swatches = {tuple(colour) for colour in np.unique(legend, axis=0).tolist()}
    assert shown <= swatches
    assert not hidden & swatches
    # Paint over the picture: nearer to the colour of the class than the picture was.
    picture = cv2.resize(
        cv2.imread(str(photos / 'a.png')), (640, 512), interpolation=cv2.INTER_CUBIC
    )
    paint = np.array(PALETTE, float)[:, ::-1][np.kron(labels, np.ones((4, 4), int))]
    before, after = (np.abs(p - paint).sum(2) for p in (picture, drawn[:, :640].astype(float)))
    assert (after <= before + 3).mean() > 0.9


def test_lines_that_are_printed(model, photos, tmp_path):
    config, checkpoint, module = model
    report = infer(str(photos / 'a.png'), f'{config}:{checkpoint}', str(tmp_path), device='cpu')
    lines = report.text().splitlines()
    expected = expected_map(module, photos / 'a.png')
    values, counts = np.unique(expected, return_counts=True)
    assert lines[0] == 'a.png'
    share = f'{counts.max() / expected.size:.1%}'
    assert lines[1].split() == [share, CLASSES[values[counts.argmax()]]]
    assert lines[-1].startswith(f'1 image, {len(values)} results: ')


def test_some_classes_only(model, photos, tmp_path):
    config, checkpoint, module = model
    expected = expected_map(module, photos / 'a.png')
    one, other = np.unique(expected)[:2]
    options = dict(classes=[f'{CLASSES[one]}, moon'], device='cpu')
    with pytest.raises(UsageError, match="knows no 'moon'"):
        infer(str(photos / 'a.png'), f'{config}:{checkpoint}', str(tmp_path), **options)
    options['classes'] = [CLASSES[one]]
    infer(str(photos / 'a.png'), f'{config}:{checkpoint}', str(tmp_path), **options)
    written = cv2.imread(str(tmp_path / 'maps/a.png.png'), -1)
    assert np.array_equal(written, np.where(expected == one, one, 255))
    _, results = read(tmp_path)
    assert [r['category_id'] for r in results] == [one]
    # Of the whole picture, not of what is reported.
    assert results[0]['share'] == pytest.approx((expected == one).mean())


def test_video(model, tmp_path):
    config, checkpoint, _ = model
    writer = cv2.VideoWriter(
        str(tmp_path / 'v.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, (160, 128)
    )
    for number in range(3):
        writer.write(draw_landscape((128, 160), 3, 'val', number)[0])
    writer.release()
    out = tmp_path / 'out'
    report = infer(str(tmp_path / 'v.mp4'), f'{config}:{checkpoint}', str(out), 2, device='cpu')
    assert (report.status, report.images, report.videos) == (0, 3, 1)
    files = sorted(file.name for file in (out / 'maps/v.mp4').iterdir())
    assert files == ['000000.png', '000001.png', '000002.png']
    video = cv2.VideoCapture(str(out / 'drawn/v.mp4'))
    frames = [video.read()[0] for _ in range(4)]
    assert frames == [True, True, True, False]


def test_many_classes_take_sixteen_bits_and_nameless_ones_get_numbers(tmp_path, photos):
    config, checkpoint, module = save_model(tmp_path, number=300, meta=False)
    infer(str(photos / 'b.jpg'), f'{config}:{checkpoint}', str(tmp_path / 'out'), device='cpu')
    written = cv2.imread(str(tmp_path / 'out/maps/b.jpg.png'), -1)
    assert written.dtype == np.uint16
    assert np.array_equal(written, expected_map(module, photos / 'b.jpg'))
    table, _ = read(tmp_path / 'out')
    assert table['categories'][299] == dict(id=299, name='class 299')


def test_large_photos_are_enlarged_in_strips(model, photos, tmp_path, monkeypatch):
    """The same map; a strip of 5 rows each."""
    from eva_mm.segmentation import inference

    torch.manual_seed(0)
    scores = torch.rand(7, 11, 13)
    monkeypatch.setattr(inference, 'MAX_SCORES', 8 * 7 * 50 * 5)
    for size in ((37, 50), (11, 13), (5, 50)):
        whole = F.interpolate(scores[None], size, mode='bilinear', align_corners=False)[0]
        assert torch.equal(inference.best_in_strips(scores, size), whole.argmax(0))

    config, checkpoint, module = model
    infer(str(photos / 'b.jpg'), f'{config}:{checkpoint}', str(tmp_path), device='cpu')
    written = cv2.imread(str(tmp_path / 'maps/b.jpg.png'), -1)
    assert (written == expected_map(module, photos / 'b.jpg')).mean() > 0.999


def test_a_long_legend_is_cut(model):
    predictor = SegmentationPredictor(Config.fromfile(model[0]), model[1], 'cpu')
    labels = np.arange(12, dtype=np.uint8).repeat(10)[None].repeat(20, 0)  # 120 x 20 px
    prediction = ClassMap(labels, {i: 200 for i in range(12)})
    drawn = predictor.draw(np.zeros((20, 120, 3), np.uint8), prediction)
    assert drawn.shape[0] == round(20 * 640 / 120)
    swatches = {tuple(c) for c in np.unique(drawn[:, 640:].reshape(-1, 3), axis=0).tolist()}
    shown = [i for i in range(12) if tuple(PALETTE[i][::-1]) in swatches]
    assert shown == list(range(len(shown)))
    assert 2 < len(shown) < 12


def test_mistakes(model, tmp_path, photos):
    config, checkpoint, _ = model
    with pytest.raises(UsageError, match='--score-thr does nothing for a segmentor'):
        infer(str(photos), f'{config}:{checkpoint}', str(tmp_path), score_thr=0.5, device='cpu')
    other = save_model(tmp_path, number=7, meta=False)[1]
    with pytest.raises(CheckpointMismatchError, match=r'cls_embed.*: model 13'):
        infer(str(photos), f'{config}:{other}', str(tmp_path / 'out'), device='cpu')


def stock_cascade():
    """mmseg's PointRend, small, for the demo's classes."""
    cfg = load_config('demo/ade20k', 'mmseg')
    model = Config.fromfile(Path(mmseg.__file__).parent / '.mim' / CASCADE).model
    widths = [64, 128, 256, 512]
    model.update(pretrained=None, data_preprocessor=cfg.model.data_preprocessor)
    model.data_preprocessor.update(size=None, test_cfg=dict(size_divisor=32))
    model.backbone.update(depth=18, norm_cfg=dict(type='BN'))
    model.neck.update(in_channels=widths, out_channels=16)
    first, last = model.decode_head
    first.update(in_channels=[16] * 4, channels=16, norm_cfg=dict(type='BN'), num_classes=12)
    last.update(in_channels=[16], channels=16, num_classes=12)
    model.test_cfg.update(subdivision_num_points=64)
    cfg.model = model
    return cfg


def test_a_stock_cascade_and_checkpoints_that_do_not_fit_it(photos, tmp_path):
    cfg = stock_cascade()
    torch.manual_seed(0)
    module = MODELS.build(cfg.model).eval()
    for layer in (module.decode_head[0].conv_seg, module.decode_head[1].fc_seg):
        torch.nn.init.normal_(layer.weight)
    cfg.dump(str(tmp_path / 'cascade.py'))
    state, file = module.state_dict(), str(tmp_path / 'cascade.pth')
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(classes=CLASSES))), file)
    model = f'{tmp_path / "cascade.py"}:{file}'
    infer(str(photos / 'a.png'), model, str(tmp_path / 'out'), device='cpu')
    written = cv2.imread(str(tmp_path / 'out/maps/a.png.png'), -1)
    assert np.array_equal(written, expected_map(module, photos / 'a.png'))
    assert read(tmp_path / 'out')[0]['categories'][11]['name'] == CLASSES[11]
    runner = SimpleNamespace(model=module)
    assert SegClassesHook().num_outputs(runner) == dry_run._outputs(cfg) == 12
    # A model of mmseg's own is held to its checkpoint as EVA's are.
    lacking = {key: value for key, value in state.items() if not key.startswith('neck')}
    torch.save(dict(state_dict={**lacking, 'odd.weight': torch.ones(1)}), file)
    with pytest.raises(CheckpointMismatchError) as caught:
        infer(str(photos / 'a.png'), model, str(tmp_path / 'none'), device='cpu')
    assert 'missing in the checkpoint (16)' in str(caught.value)
    assert 'odd.weight' in str(caught.value)


def test_published_names_bring_their_configs():
    for name, config in {
        'eva_sem_seg_ade': 'ade20k/eva_mask2former.py',
        'eva_sem_seg_ade_relpos': 'ade20k/eva_mask2former_relpos.py',
        'eva_sem_seg_coco_stuff': 'coco_stuff/eva_mask2former.py',
        'eva_sem_seg_coco_stuff_relpos': 'coco_stuff/eva_mask2former_relpos.py',
    }.items():
        choice = choose_model(name)
        assert choice.config.endswith(config)
        assert choice.checkpoint == f'eva://{name}'


def test_from_the_command_line(model, photos, tmp_path):
    config, checkpoint, _ = model
    command = [sys.executable, str(ROOT / 'tools/infer.py'), str(photos / 'a.png')]
    command += ['--model', f'{config}:{checkpoint}', '--out', str(tmp_path / 'out')]
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': '-1', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('a.png\n')
    assert 'Traceback' not in done.stderr


def test_interfaces_of_mmseg(model, photos):
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    config, checkpoint, module = model
    expected = expected_map(module, photos / 'b.jpg')
    own = init_model(config, checkpoint, device='cpu')
    assert tuple(own.dataset_meta['classes']) == CLASSES
    found = inference_model(own, str(photos / 'b.jpg'))
    assert np.array_equal(found.pred_sem_seg.data[0].numpy(), expected)
    found = inference_model(own, cv2.imread(str(photos / 'b.jpg')))
    assert np.array_equal(found.pred_sem_seg.data[0].numpy(), expected)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        inferencer = MMSegInferencer(config, checkpoint, device='cpu', show_progress=False)
    result = inferencer(str(photos / 'b.jpg'), return_vis=True)
    assert np.array_equal(result['predictions'], expected)
    assert result['visualization'].shape == (*SIZES[1], 3)
