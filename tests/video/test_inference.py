"""Video classifiers in tools/infer.py: one answer per video, names, tables, sheets of frames."""

import csv
import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmaction.registry import MODELS
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import init_default_scope

from eva_mm.engine.inference import infer
from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.errors import InputError, UsageError
from eva_mm.video.inference import (
    VideoPredictor,
    draw_sheet,
    even_clips,
    output_names,
    read_frames,
)

from ..helpers import ROOT, load_config
from .small import shrink_video, write_video

CLASSES = ('arm wrestling', 'bowling', 'cartwheeling', 'dodgeball', 'egg hunting', 'fencing')


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Two videos in two folders, one that is cut off, and a picture."""
    root = tmp_path_factory.mktemp('videos')
    write_video(root / 'a.mp4', 20)
    write_video(root / 'more' / 'b.mp4', 3, (80, 96))
    write_video(root / 'torn.mp4', 20)
    (root / 'torn.mp4').write_bytes((root / 'torn.mp4').read_bytes()[:700])
    cv2.imwrite(str(root / 'photo.png'), np.zeros((40, 40, 3), np.uint8))
    return root


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """Config and checkpoint of a small random classifier, and the model."""
    return save_model(tmp_path_factory.mktemp('model'), CLASSES)


def save_model(folder, classes, num_classes=None):
    num_classes = num_classes or len(classes)
    cfg = shrink_video(load_config('kinetics/eva_g_k400', 'mmaction'), num_classes)
    cfg.model.cls_head.class_rows = None
    cfg.test_dataloader.dataset.ann_file = str(folder / 'val.txt')
    torch.manual_seed(0)
    module = MODELS.build(cfg.model).eval()
    torch.nn.init.normal_(module.cls_head.fc_cls.weight)
    module.is_init = True
    checkpoint = dict(state_dict=module.state_dict())
    if classes:
        checkpoint['meta'] = dict(dataset_meta=dict(classes=list(classes)))
    torch.save(checkpoint, folder / 'small.pth')
    cfg.dump(str(folder / 'small.py'))
    return str(folder / 'small.py'), str(folder / 'small.pth'), module, cfg


def expected(model, path):
    """Probabilities by the config's own pipeline with even clips, by hand."""
    init_default_scope('mmaction')
    *_, module, cfg = model
    pipeline = Compose(even_clips(cfg.test_pipeline))
    sample = pipeline(dict(filename=str(path), label=-1, start_index=0, modality='RGB'))
    assert sample['inputs'].shape[0] == 12
    with torch.no_grad():
        (result,) = module.test_step(pseudo_collate([sample]))
    return result.pred_score


def read(out):
    with (out / 'results.csv').open(newline='', encoding='utf-8') as file:
        rows = list(csv.reader(file))
    table = json.loads((out / 'images.json').read_text())
    return rows, table, json.loads((out / 'results.json').read_text())


@pytest.mark.parametrize('batch_size', [1, 3])
def test_folder(model, videos, tmp_path, batch_size, capfd):
    config, checkpoint, *_ = model
    report = infer(str(videos), f'{config}:{checkpoint}', str(tmp_path), batch_size=batch_size)
    rows, table, results = read(tmp_path)
    assert report.status == 3
    assert report.skipped.keys() == {'torn.mp4', 'photo.png'}
    assert 'takes videos' in report.skipped['photo.png']
    assert 'cannot be decoded' in report.skipped['torn.mp4']
    assert '4/4 videos' in capfd.readouterr().err
    assert (report.images, report.results) == (2, 10)
    assert table['categories'] == [dict(id=i, name=name) for i, name in enumerate(CLASSES)]
    assert table['images'] == [
        dict(id=1, file_name='a.mp4'),
        dict(id=2, file_name='more/b.mp4'),
    ]
    assert [row[0] for row in rows[1:]] == ['a.mp4', 'more/b.mp4']
    for name, *cells in rows[1:]:
        probabilities = expected(model, videos / name)
        best = probabilities.argsort(descending=True)[:5]
        assert cells[::2] == [CLASSES[i] for i in best]
        assert np.allclose([float(cell) for cell in cells[1::2]], probabilities[best], atol=1e-4)
        found = [r for r in results if r['file_name'] == name]
        assert [r['category_id'] for r in found] == best.tolist()
    lines = report.text().splitlines()
    assert lines[0] == 'a.mp4'
    assert lines[1].split(maxsplit=1)[1] in CLASSES
    assert lines[12].startswith('2 videos, 10 results: ')

    drawn = {str(path.relative_to(tmp_path / 'drawn')) for path in tmp_path.rglob('*.mp4.png')}
    assert drawn == {'a.mp4.png', 'more/b.mp4.png'}
    sheet = cv2.imread(str(tmp_path / 'drawn' / 'a.mp4.png'))
    # Two rows of four frames, each brighter than the one before, and the answer below.
    tiles = [
        sheet[50 + 100 * row, 60 + 120 * column].mean() for row in (0, 1) for column in range(4)
    ]
    assert np.all(np.diff(tiles) > 10)
    text = sheet[200:]
    assert len(text) > 90
    assert text.min() == 0
    assert text.max() == 255


def test_same_video_same_answer(model, videos, tmp_path):
    config, checkpoint, *_ = model
    answers = []
    for seed in range(2):
        np.random.seed(seed)
        out = tmp_path / str(seed)
        infer(str(videos / 'a.mp4'), f'{config}:{checkpoint}', str(out), draw=False)
        answers.append(read(out)[2])
        assert not (out / 'drawn').exists()
    assert answers[0] == answers[1]


def test_some_classes_only(model, videos, tmp_path):
    config, checkpoint, *_ = model
    options = dict(classes=['fencing, bowling'], draw=False)
    infer(str(videos / 'a.mp4'), f'{config}:{checkpoint}', str(tmp_path), **options)
    rows, _, results = read(tmp_path)
    probabilities = expected(model, videos / 'a.mp4')
    found = {r['category_id']: r['score'] for r in results}
    # Among all classes, as the model was trained.
    assert found == pytest.approx({i: float(probabilities[i]) for i in (1, 5)}, abs=1e-4)
    assert len(rows[0]) == 5
    threshold = float(probabilities.sort().values[-2])
    infer(str(videos / 'a.mp4'), f'{config}:{checkpoint}', str(tmp_path), score_thr=threshold)
    rows, _, results = read(tmp_path)
    assert [r['category_id'] for r in results] == [int(probabilities.argmax())]
    assert len(rows[1]) == len(rows[0]) == 11


def test_wrong_classes_thresholds_and_checkpoints(model):
    config, checkpoint, _, cfg = model
    cfg = cfg.fromfile(config)
    for classes, message in {
        'fencin': "knows no 'fencin'; near: fencing",
        'zumba': "knows no 'zumba'; it has arm wrestling; bowling",
        ' , ': 'names no class',
    }.items():
        with pytest.raises(UsageError, match=message):
            VideoPredictor(cfg, checkpoint, 'cpu', classes=[classes])
    with pytest.raises(UsageError, match='takes a probability'):
        VideoPredictor(cfg, checkpoint, 'cpu', score_thr=1.0)
    cfg.model.cls_head.num_classes = 7
    with pytest.raises(CheckpointMismatchError, match=r'fc_cls.*: model 7.*, checkpoint 6'):
        VideoPredictor(cfg, checkpoint, 'cpu')


def test_checkpoints_of_mmactions_own_models_must_fit_too(tmp_path):
    cfg = load_config('kinetics/eva_g_k400', 'mmaction')
    layer = dict(type='ResNet3d', depth=18, base_channels=2, num_stages=1, spatial_strides=(1,),
                 temporal_strides=(1,), dilations=(1,), inflate=(0,), out_indices=(0,),
                 pretrained=None, pretrained2d=False)  # fmt: skip
    head = dict(type='I3DHead', in_channels=2, num_classes=3)
    cfg.model = dict(type='Recognizer3D', backbone=layer, cls_head=head)
    init_default_scope('mmaction')
    weights = MODELS.build(cfg.model).state_dict()
    file = str(tmp_path / 'own.pth')
    counters = [name for name in weights if name.endswith('num_batches_tracked')]
    assert counters
    torch.save(dict(state_dict={k: v for k, v in weights.items() if k not in counters}), file)
    predictor = VideoPredictor(cfg, file, 'cpu')
    for name, value in predictor.model.state_dict().items():
        assert torch.equal(value, weights[name])
    renamed = {k.replace('cls_head', 'head'): v for k, v in weights.items()}
    torch.save(dict(state_dict=renamed), file)
    with pytest.raises(CheckpointMismatchError, match=r'(?s)own.pth do not fit.*cls_head.*head'):
        VideoPredictor(cfg, file, 'cpu')


def test_a_few_views_at_a_time(model, videos):
    config, checkpoint, *_ = model
    cfg = load_config('kinetics/eva_g_k400', 'mmaction').fromfile(config)
    answers = []
    for limit in (None, 5):
        if limit:
            cfg.model.test_cfg = dict(max_testing_views=limit)
        predictor = VideoPredictor(cfg, checkpoint, 'cpu')
        samples = [predictor.load_video(str(videos / name)) for name in ('a.mp4', 'more/b.mp4')]
        answers.append(predictor.predict(samples))
    for one, other in zip(*answers):
        assert dict(one) == pytest.approx(dict(other), abs=1e-5)


def test_frames_are_read_for_drawings_alone(model, videos, tmp_path, monkeypatch):
    config, checkpoint, *_ = model
    read_paths = []

    def broken_frames(path, number):
        read_paths.append(path)
        raise RuntimeError('Error reading 7 bytes...')

    monkeypatch.setattr('eva_mm.video.inference.read_frames', broken_frames)
    options = dict(given=str(videos / 'a.mp4'), model=f'{config}:{checkpoint}')
    assert infer(**options, out=str(tmp_path / 'plain'), draw=False).status == 0
    assert read_paths == []
    # Frames that no clip has may be broken: the answer is there all the same.
    report = infer(**options, out=str(tmp_path / 'drawn'))
    assert (report.status, report.results) == (0, 5)
    assert read_paths == [str(videos / 'a.mp4')]
    picture = cv2.imread(str(tmp_path / 'drawn' / 'drawn' / 'a.mp4.png'))
    assert picture.min() == 0
    assert len(picture) > 90


def test_names_of_the_outputs(tmp_path):
    cfg = load_config('kinetics/eva_g_k400', 'mmaction')
    names = output_names({}, cfg, 400)
    assert (names[0], names[6], names[399]) == ('abseiling', 'arm wrestling', 'zumba')
    assert len(set(names)) == 400
    assert output_names({}, cfg, 3) == ['class 0', 'class 1', 'class 2']
    cfg.test_dataloader.dataset.ann_file = str(tmp_path / 'val.txt')
    (tmp_path / 'classes.txt').write_text('one\ntwo\nthree\n')
    assert output_names({}, cfg, 3) == ['one', 'two', 'three']
    cfg.test_dataloader.dataset.classes = str(tmp_path / 'classes.txt')
    with pytest.raises(InputError, match=r'classes=.*classes.txt names 3 classes, .* has 400 out'):
        output_names({}, cfg, 400)
    meta = dict(meta=dict(dataset_meta=dict(classes=('x', 'y', 'z'))))
    assert output_names(meta, cfg, 3) == ['x', 'y', 'z']


def test_sheet_of_frames(videos):
    frames = read_frames(str(videos / 'a.mp4'), 8)
    # The middles of eight parts of 20 frames; frame i is 10 + 10 * i bright.
    levels = [frame.mean() for frame in frames]
    np.testing.assert_allclose(levels, [10 + 10 * i for i in (1, 3, 6, 8, 11, 13, 16, 18)], atol=4)
    assert draw_sheet(frames).shape == (200, 480, 3)
    assert draw_sheet(read_frames(str(videos / 'more' / 'b.mp4'), 8)).shape == (192, 480, 3)
    wide = [np.zeros((360, 640, 3), np.uint8)] * 5
    sheet = draw_sheet(wide)
    assert sheet.shape == (270, 960, 3)
    assert sheet[200, 500].min() == 255  # no sixth frame


def test_mmactions_own_inferencer(model, videos, tmp_path):
    from mmaction.apis.inferencers import MMAction2Inferencer

    config, checkpoint, module, cfg = model
    (tmp_path / 'labels.txt').write_text('\n'.join(CLASSES))
    inferencer = MMAction2Inferencer(
        config, checkpoint, device='cpu', label_file=str(tmp_path / 'labels.txt')
    )
    np.random.seed(3)
    video, written = str(videos / 'a.mp4'), str(tmp_path / 'found.json')
    # Frames as pictures: as a video they need moviepy.
    options = dict(vid_out_dir=str(tmp_path), out_type='img', pred_out_file=written)
    found = inferencer(video, **options)
    ((scores,),) = [one['rec_scores'] for one in found['predictions']]
    # It takes the middle crop of the published random clips.
    init_default_scope('mmaction')
    steps = [
        dict(step, type='CenterCrop') if step['type'] == 'ThreeCrop' else step
        for step in cfg.test_pipeline
    ]
    np.random.seed(3)
    sample = Compose(steps)(dict(filename=video, label=-1, start_index=0, modality='RGB'))
    assert sample['inputs'].shape[0] == 4
    with torch.no_grad():
        (result,) = module.test_step(pseudo_collate([sample]))
    np.testing.assert_allclose(scores, result.pred_score, atol=1e-4)
    assert json.loads((tmp_path / 'found.json').read_text())['predictions']
    assert len(list(tmp_path.rglob('a.mp4/frames_0/*.png'))) == 20


@pytest.mark.slow
def test_tool(model, videos, tmp_path):
    tool = [sys.executable, str(ROOT / 'tools' / 'infer.py'), str(videos), '--device', 'cpu']
    done = subprocess.run(
        [*tool, '--model', ':'.join(model[:2]), '--no-draw', '--out', 'found'],
        cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '-1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith('a.mp4\n')
    assert '2 videos, 10 results: found/results.json' in done.stdout
    assert {p.name for p in (tmp_path / 'found').iterdir()} == {
        'images.json',
        'results.csv',
        'results.json',
    }
