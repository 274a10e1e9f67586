"""Classifiers in tools/infer.py: the probabilities of the model itself, names, tables, drawings."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image
from timm.data import ImageNetInfo
from torchvision import transforms

from eva_mm.classification.inference import ClassificationPredictor, class_names
from eva_mm.engine import inference
from eva_mm.engine.inference import infer
from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.errors import UsageError

from ..helpers import ROOT, load_config
from .small import save_image, shrink_classifier
from .test_zero_shot import NAMES, _small_eva_clip, logits_of, small_leaf  # noqa: F401

SIZE = 32
CLASSES = ('ant', 'bee', 'cat', 'dog', 'emu', 'fox', 'gnu')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Pictures in two folders, one on its side, and one that is cut off."""
    root = tmp_path_factory.mktemp('photos')
    save_image(root / 'a.png', (220, 40, 40), 0, (61, 47))
    save_image(root / 'more' / 'b.png', (40, 200, 40), 1, (40, 64))
    save_image(root / 'c.png', (40, 40, 200), 2, (90, 40))
    turned = Image.open(root / 'c.png')
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    turned.save(root / 'turned.jpg', exif=exif, quality=95)
    (root / 'torn.png').write_bytes((root / 'a.png').read_bytes()[:900])
    return root


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """Config and checkpoint of a small random classifier, and the model."""
    return save_model(tmp_path_factory.mktemp('model'), CLASSES)


def save_model(folder, classes, num_classes=None):
    num_classes = num_classes or len(classes)
    cfg = shrink_classifier(load_config('imagenet/eva_g_in1k_336', 'mmengine'), num_classes, SIZE)
    cfg.test_dataloader.dataset.pipeline = cfg.test_pipeline
    cfg.test_dataloader.dataset.classes = None
    torch.manual_seed(0)
    module = MODELS.build(dict(cfg.model)).eval()
    torch.nn.init.normal_(module.head.weight)
    checkpoint = dict(state_dict=module.state_dict())
    if classes:
        checkpoint['meta'] = dict(dataset_meta=dict(classes=list(classes)))
    torch.save(checkpoint, folder / 'small.pth')
    cfg.dump(str(folder / 'small.py'))
    return str(folder / 'small.py'), str(folder / 'small.pth'), module


def read(out):
    with (out / 'results.csv').open(newline='', encoding='utf-8') as file:
        rows = list(csv.reader(file))
    table = json.loads((out / 'images.json').read_text())
    return rows, table, json.loads((out / 'results.json').read_text())


TRANSFORM = transforms.Compose(
    [
        transforms.Resize(SIZE, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(SIZE),
        transforms.PILToTensor(),
    ]
)


@torch.no_grad()
def probabilities(module, image):
    batch = module.data_preprocessor(dict(image=TRANSFORM(image)[None]))
    return module(batch['image'])[0].softmax(0)


def test_folder(model, photos, tmp_path):
    config, checkpoint, module = model
    report = infer(str(photos), f'{config}:{checkpoint}', str(tmp_path), batch_size=3)
    rows, table, results = read(tmp_path)
    assert report.status == 3
    assert report.skipped.keys() == {'torn.png'}
    assert (report.images, report.results) == (4, 20)
    assert rows[0] == ['file_name'] + [
        column for n in range(1, 6) for column in (f'class_{n}', f'probability_{n}')
    ]
    assert table['categories'] == [dict(id=i, name=name) for i, name in enumerate(CLASSES)]
    files = {row['file_name']: row for row in table['images']}
    assert (files['turned.jpg']['width'], files['turned.jpg']['height']) == (40, 90)

    for name, *cells in rows[1:]:
        image = Image.open(photos / name).convert('RGB')
        if name == 'turned.jpg':
            image = image.transpose(Image.Transpose.ROTATE_270)
        expected = probabilities(module, image)
        best = expected.argsort(descending=True)[:5]
        assert cells[::2] == [CLASSES[i] for i in best]
        assert np.allclose([float(cell) for cell in cells[1::2]], expected[best], atol=1e-5)
        found = [r for r in results if r['file_name'] == name]
        assert [r['category_id'] for r in found] == best.tolist()
        assert np.allclose([r['score'] for r in found], expected[best], atol=1e-5)
    assert [row[0] for row in rows[1:]] == ['a.png', 'c.png', 'more/b.png', 'turned.jpg']

    drawn = np.asarray(Image.open(tmp_path / 'drawn' / 'a.png'))
    assert drawn.shape == (47, 61, 3)
    assert (drawn != np.asarray(Image.open(photos / 'a.png'))).any()


def test_one_image_is_described(model, photos, tmp_path):
    config, checkpoint, module = model
    report = infer(str(photos / 'a.png'), f'{config}:{checkpoint}', str(tmp_path))
    lines = report.text().splitlines()
    expected = probabilities(module, Image.open(photos / 'a.png'))
    assert lines[0] == 'a.png'
    assert lines[1] == f'{expected.max():<12.5g}{CLASSES[int(expected.argmax())]}'
    assert len(lines) == 7
    assert lines[6].startswith('1 image, 5 results: ')


def test_some_classes_only(model, photos, tmp_path):
    config, checkpoint, module = model
    options = dict(classes=['fox, ant'], draw=False)
    infer(str(photos / 'a.png'), f'{config}:{checkpoint}', str(tmp_path), **options)
    rows, table, results = read(tmp_path)
    expected = probabilities(module, Image.open(photos / 'a.png'))
    found = {CLASSES[r['category_id']]: r['score'] for r in results}
    # Among all classes, as the model was trained.
    assert found == pytest.approx({'ant': float(expected[0]), 'fox': float(expected[5])}, abs=1e-5)
    assert len(rows[0]) == 5
    assert table['info']['classes'] == ['fox, ant']

    options.update(classes=None, score_thr=0.2)
    infer(str(photos / 'a.png'), f'{config}:{checkpoint}', str(tmp_path), **options)
    rows, table, results = read(tmp_path)
    above = [i for i, p in enumerate(expected.tolist()) if p > 0.2]
    assert {r['category_id'] for r in results} == set(above)
    assert 0 < len(above) < 5
    assert len(rows[1]) == len(rows[0]) == 11
    assert rows[1][-1] == ''
    assert table['info']['score_thr'] == 0.2


def test_wrong_classes_and_thresholds(model):
    cfg = load_config('imagenet/eva_g_in1k_336', 'mmengine').fromfile(model[0])
    for classes, message in {
        'cta': "knows no 'cta'; near: cat",
        'zebra': "knows no 'zebra'; it has ant; bee; cat; dog; emu",
        ' , ': 'names no class',
    }.items():
        with pytest.raises(UsageError, match=message):
            ClassificationPredictor(cfg, model[1], 'cpu', classes=[classes])
    with pytest.raises(UsageError, match='takes a probability'):
        ClassificationPredictor(cfg, model[1], 'cpu', score_thr=1.0)
    cfg.model.num_classes = 6
    with pytest.raises(CheckpointMismatchError, match=r'head.*: model 6.*, checkpoint 7'):
        ClassificationPredictor(cfg, model[1], 'cpu')


def test_names_of_the_outputs():
    cfg = load_config('imagenet/eva_g_in1k_336', 'mmengine')
    names = class_names({}, cfg, 1000)
    assert names[0] == 'tench, Tinca tinca'
    assert names[999] == ImageNetInfo().index_to_description(999)
    cfg.test_dataloader.dataset.classes = None
    assert class_names({}, cfg, 1000) == names
    assert len(class_names({}, cfg, 21841)) == 21841
    assert class_names({}, cfg, 3) == ['class 0', 'class 1', 'class 2']
    meta = dict(meta=dict(dataset_meta=dict(classes=('x', 'n01440764'))))
    assert class_names(meta, cfg, 2) == ['x', 'tench, Tinca tinca']
    assert class_names(meta, cfg, 3) == ['class 0', 'class 1', 'class 2']


def test_words_for_the_same_class(tmp_path, photos):
    config, checkpoint, _ = save_model(tmp_path, None, 1000)
    infer(str(photos / 'a.png'), f'{config}:{checkpoint}', str(tmp_path), classes=['crane,tench'])
    rows, _, results = read(tmp_path)
    # Two classes are called crane.
    assert {r['category_id'] for r in results} == {0, 134, 517}
    assert len(rows[1]) == 7


@pytest.mark.usefixtures('_small_eva_clip')
def test_names_of_a_users_own(photos, tmp_path):
    cfg = small_leaf(classes='imagenet-1k', templates='openai')
    torch.manual_seed(0)
    module = MODELS.build(cfg.model)
    torch.save(module.clip.state_dict(), tmp_path / 'clip.pt')
    cfg.dump(str(tmp_path / 'clip.py'))
    choice = f'{tmp_path}/clip.py:{tmp_path}/clip.pt'
    report = infer(str(photos / 'a.png'), choice, str(tmp_path), classes=['a dog, a cat,a diagram'])
    image = module.data_preprocessor(dict(image=TRANSFORM(Image.open(photos / 'a.png'))[None]))
    names = ['a dog', 'a cat', 'a diagram']
    expected = logits_of(module.clip, image['image'], names, ['{}'])[0].softmax(0)
    rows, table, results = read(tmp_path)
    found = {names[r['category_id']]: r['score'] for r in results}
    assert found == pytest.approx(dict(zip(names, expected.tolist())), rel=1e-4)
    assert [category['name'] for category in table['categories']] == names
    assert len(rows[1]) == 7
    assert report.text().splitlines()[1].split(maxsplit=1)[1] in names

    cfg.own_class_templates = ['a photo of a {}.', 'a {}.']
    predictor = ClassificationPredictor(cfg, str(tmp_path / 'clip.pt'), 'cpu', NAMES)
    sample = predictor.prepare(predictor.load(str(photos / 'a.png')))
    expected = logits_of(module.clip, image['image'], NAMES, cfg.own_class_templates)[0].softmax(0)
    ((best, score), *_) = predictor.predict([sample])[0]
    assert (best, score) == (int(expected.argmax()), pytest.approx(float(expected.max()), rel=1e-4))


def test_predictor_named_by_the_config(model, tmp_path):
    text = (
        f'_base_ = {model[0]!r}\n'
        "model = dict(type='mine.Own')\n"
        "predictor = 'tests.classification.test_inference.Own'\n"
    )
    (tmp_path / 'own.py').write_text(text)
    choice = inference.Choice(str(tmp_path / 'own.py'), model[1])
    own = inference.build_predictor(choice, device=None, classes=['x'])
    assert isinstance(own, Own)
    assert own.options == dict(classes=['x'])  # the rest is left to the class


class Own:
    def __init__(self, cfg, checkpoint, **options):
        self.options = options


@pytest.mark.slow
def test_tool(model, photos, tmp_path):
    tool = [sys.executable, str(ROOT / 'tools' / 'infer.py'), str(photos), '--device', 'cpu']
    done = subprocess.run(
        [*tool, '--model', ':'.join(model[:2]), '--no-draw', '--out', 'found'],
        cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '-1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith('a.png\n')
    assert '4 images, 20 results: found/results.json' in done.stdout
    assert {p.name for p in (tmp_path / 'found').iterdir()} == {
        'images.json',
        'results.csv',
        'results.json',
    }
