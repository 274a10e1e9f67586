"""ImageNet's variants: tiny images in the real layouts, against sums made by hand."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.dataset import default_collate
from mmengine.registry import MODELS
from timm.data import ImageNetInfo
from torchvision import transforms

from eva_mm.classification import ClassificationImages
from eva_mm.classification.variants import (
    NumberedImages,
    ObjectNetImages,
    RealImages,
    RealLabelsMetric,
    Row,
    SubsetImages,
    SubsetMetric,
    evaluate_variants,
    format_table,
    read_objectnet_mapping,
    read_real_labels,
    subset_classes,
)
from eva_mm.engine.image_data import open_rgb
from eva_mm.engine.launch import run_variants
from eva_mm.errors import InputError, MissingFileError, UsageError

from ..helpers import ROOT, load_config
from .small import make_folders, save_image, shrink_classifier

WNIDS = ImageNetInfo().label_names()
SIZE = 16


def noise(path, seed):
    save_image(path, (128, 128, 128), seed, size=(19, 23))


@pytest.fixture(scope='module')
def imagenet(tmp_path_factory):
    """One picture in each of ImageNet's 1000 folders, and every other layout made of them."""
    root = tmp_path_factory.mktemp('imagenet')
    for index, wnid in enumerate(WNIDS):
        # Names in another order than the folders, as ImageNet's are.
        noise(root / 'val' / wnid / f'ILSVRC2012_val_{7 * index % 1000 + 1:08d}.png', index)
    for index, wnid in enumerate(WNIDS):
        for part, name in (('v2', str(index)), ('sketch', wnid)):
            (root / part).mkdir(exist_ok=True)
            os.symlink(root / 'val' / wnid, root / part / name)
    for part in ('a', 'r'):
        (root / part).mkdir()
        for wnid in subset_classes(f'imagenet-{part}'):
            os.symlink(root / 'val' / wnid, root / part / wnid)
    make_objectnet(root / 'objectnet')
    return root


OBJECTS = {
    # folder: name, names of ImageNet's classes (numbers 2, 5 + 9, 900)
    'beer_bottle': ('Beer bottle', 'shark, big'),
    'alarm_clock': ('Alarm Clock', 'analog clock; digital clock'),
    'weather_vane': ('Weather vane', 'tower'),
}
NUMBERS = {'beer_bottle': (2,), 'alarm_clock': (9, 5), 'weather_vane': (900,)}


def make_objectnet(root, **changes):
    """Three folders that ImageNet knows and one that it does not; lines in another order."""
    for index, folder in enumerate([*OBJECTS, 'air_freshener']):
        for number in range(2):
            noise(root / 'images' / folder / f'{number}.png', 5000 + 2 * index + number)
    lines = [f'class {i}' for i in range(1000)]
    ids = {str(number): 999 - number for number in range(1000)}  # class number -> line
    for folder, (_, names) in OBJECTS.items():
        for name, number in zip(names.split('; '), NUMBERS[folder]):
            lines[ids[str(number)]] = name
    files = {
        'folder_to_objectnet_label.json': {
            **{folder: name for folder, (name, _) in OBJECTS.items()},
            'air_freshener': 'Air freshener',
        },
        'objectnet_to_imagenet_1k.json': dict(OBJECTS.values()),
        'pytorch_to_imagenet_2012_id.json': ids,
    }
    (root / 'mappings').mkdir(parents=True)
    for name, content in {**files, **changes}.items():
        (root / 'mappings' / name).write_text(json.dumps(content))
    (root / 'mappings' / 'imagenet_to_label_2012_v2').write_text('\n'.join(lines) + '\n')
    return root


# ----------------------------------------------------------------------------------- data sets


def labels_of(dataset):
    return [dataset.get_data_info(i)['label'] for i in range(len(dataset))]


def test_folders_of_numbers_are_in_the_order_of_numbers(imagenet):
    dataset = NumberedImages(str(imagenet / 'v2'))
    for index in (0, 11, 500, 999):
        info = dataset.get_data_info(index)
        assert os.path.basename(os.path.dirname(info['img_path'])) == str(info['label'])
    assert sorted(labels_of(dataset)) == list(range(1000))


@pytest.mark.parametrize('name', ['a', 'r'])
def test_subsets_of_timm(imagenet, name):
    dataset = SubsetImages(str(imagenet / name), subset=f'imagenet-{name}')
    subset = dataset.metainfo['subset']
    assert len(dataset) == len(subset) == 200
    assert list(subset) == sorted(subset)  # sorted WordNet ids, as the published masks
    assert set(labels_of(dataset)) == set(subset)
    # tench and jellyfish: in R, not in A, and the reverse
    assert (1 in subset) == (name == 'r')
    assert (107 in subset) == (name in 'ar')


def test_subset_folders_are_checked(tmp_path):
    three = dict(classes=['ant', 'bee', 'cat', 'dog'], subset=['dog', 'bee'])
    make_folders(tmp_path / 'good', {'bee': 1, 'dog': 2})
    dataset = SubsetImages(str(tmp_path / 'good'), **three)
    assert dataset.metainfo['subset'] == (3, 1)
    assert labels_of(dataset) == [1, 3, 3]

    make_folders(tmp_path / 'few', {'bee': 1})
    with pytest.raises(
        InputError, match=r'few should hold 2 classes, but holds 1; missing: 1 .dog'
    ):
        SubsetImages(str(tmp_path / 'few'), **three)
    make_folders(tmp_path / 'more', {'bee': 1, 'dog': 1, 'cat': 1})
    with pytest.raises(InputError, match=r'holds 3; not among them: 1 .cat'):
        SubsetImages(str(tmp_path / 'more'), **three)
    with pytest.raises(InputError, match="'emu' is none of the 4 classes"):
        SubsetImages(str(tmp_path / 'good'), **{**three, 'subset': ['bee', 'emu']})


def test_objectnet(imagenet):
    root = str(imagenet / 'objectnet')
    dataset = ObjectNetImages(root)
    assert len(dataset.metainfo['classes']) == 1000
    by_folder = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        by_folder.setdefault(info['img_path'].split(os.sep)[-2], []).append(info['label'])
    # The first of the names, in the order of the mapping; the folder without a class is left out.
    assert by_folder == {'alarm_clock': [9, 9], 'beer_bottle': [2, 2], 'weather_vane': [900, 900]}
    assert read_objectnet_mapping(os.path.join(root, 'mappings')).labels == NUMBERS

    own = ObjectNetImages(root, own_classes=True)
    names = ('alarm clock', 'beer bottle', 'weather vane')
    assert own.metainfo['class_texts'] == own.metainfo['classes'] == names
    assert labels_of(own) == [0, 0, 1, 1, 2, 2]


def test_objectnet_folders_and_mappings_are_checked(tmp_path):
    root = make_objectnet(tmp_path / 'renamed')
    os.rename(root / 'images' / 'beer_bottle', root / 'images' / 'bottle')
    with pytest.raises(InputError, match='not among them: 1 .bottle'):
        ObjectNetImages(str(root))
    root = make_objectnet(tmp_path / 'missing')
    os.rename(root / 'images' / 'beer_bottle', root / 'gone')
    with pytest.raises(InputError, match='missing: 1 .beer_bottle'):
        ObjectNetImages(str(root))
    (root / 'mappings' / 'imagenet_to_label_2012_v2').unlink()
    with pytest.raises(MissingFileError, match='imagenet_to_label_2012_v2'):
        ObjectNetImages(str(root))
    wrong = {'Beer bottle': 'no such class'}
    root = make_objectnet(tmp_path / 'wrong', **{'objectnet_to_imagenet_1k.json': wrong})
    with pytest.raises(InputError, match="contradict one another: no entry 'no such class'"):
        ObjectNetImages(str(root))


def test_real_labels_follow_file_names(tmp_path):
    root = tmp_path / 'val'
    noise(root / 'ant' / 'x_3.png', 0)
    noise(root / 'bee' / 'x_1.png', 1)
    noise(root / 'bee' / 'x_2.png', 2)
    labels = tmp_path / 'real.json'
    labels.write_text('[[0, 1], [], [1]]')
    dataset = RealImages(str(root), str(labels), classes=['ant', 'bee'])
    assert dataset.metainfo['real_labels'] == {
        'x_1.png': (0, 1),
        'x_2.png': (),
        'x_3.png': (1,),
    }
    assert labels_of(dataset) == [0, 1, 1]

    for text, message in {
        '[[0], [1]]': 'real.json has labels of 2 images, but .*val holds 3',
        '[[0], [1], [2]]': 'image 2 has label 2, expected 0 to 1',
        '[[0], [true], []]': 'image 1 has label True',
        '{"0": []}': 'expected a list with a list of labels',
        '[[0], [1': 'is no JSON',
    }.items():
        labels.write_text(text)
        with pytest.raises(InputError, match=message):
            RealImages(str(root), str(labels), classes=['ant', 'bee'])
    with pytest.raises(MissingFileError, match='none.json'):
        RealImages(str(root), str(tmp_path / 'none.json'), classes=['ant', 'bee'])
    noise(root / 'ant' / 'x_1.png', 3)
    labels.write_text('[[0], [1], [], []]')
    with pytest.raises(InputError, match='two images are called x_1.png'):
        RealImages(str(root), str(labels), classes=['ant', 'bee'])


def test_real_labels_of_timm_are_the_published_ones():
    labels = read_real_labels(None, 1000)
    # recorded in arXiv 2006.07159: images without a valid label are left out
    assert (len(labels), sum(not row for row in labels)) == (50000, 3163)


# ------------------------------------------------------------------------------------- metrics


def test_subset_metric_equals_a_smaller_head():
    torch.manual_seed(0)
    logits = 3 * torch.randn(40, 9)
    subset = (1, 4, 5, 7, 8, 2)
    labels = torch.tensor(subset)[torch.randint(0, 6, (40,))]
    metric = SubsetMetric(topk=(1, 5))
    metric.dataset_meta = dict(subset=subset)
    metric.process(None, [dict(logits=row, label=y) for row, y in zip(logits, labels)])
    values = metric.evaluate(40)
    smaller = logits[:, list(subset)]
    place = torch.tensor([subset.index(int(y)) for y in labels])
    assert values['accuracy/top1'] == pytest.approx(
        100 * float((smaller.argmax(1) == place).float().mean())
    )
    assert values['accuracy/loss'] == pytest.approx(
        float(F.cross_entropy(smaller, place)), rel=1e-5
    )
    metric.dataset_meta = dict(subset=(1, 9))
    with pytest.raises(InputError, match='counts class 9, but the model has 9 outputs'):
        metric.process(None, [dict(logits=logits[0], label=1)])


def test_real_labels_metric_by_hand():
    metric = RealLabelsMetric(topk=(1, 2))
    metric.dataset_meta = dict(real_labels={'a': (2, 1), 'b': (), 'c': (0,), 'd': (0, 2)})
    rows = {'a': [0.0, 3.0, 1.0], 'b': [9.0, 0.0, 0.0], 'c': [1.0, 5.0, 2.0], 'd': [2.0, 3.0, 1.0]}
    samples = [
        dict(logits=torch.tensor(row), label=0, img_path=f'some/where/{name}')
        for name, row in rows.items()
    ]
    metric.process(None, samples[:3])
    metric.process(None, samples[3:])
    values = metric.evaluate(4)
    # a: hit; b: left out; c: third; d: second
    assert values['accuracy/top1'] == pytest.approx(100 / 3)
    assert values['accuracy/top2'] == pytest.approx(200 / 3)
    expected = F.cross_entropy(torch.tensor(list(rows.values())), torch.zeros(4, dtype=torch.long))
    assert values['accuracy/loss'] == pytest.approx(float(expected), rel=1e-5)


# ----------------------------------------------------------------------------------- the table


def small_leaf(imagenet, tmp_path, num_classes=1000, **kwargs):
    """The 336 px leaf at 16 px on the tiny data, with the checkpoint of a random model."""
    cfg = shrink_classifier(load_config('imagenet/eva_g_in1k_336', 'mmengine'), num_classes, SIZE)
    cfg.test_dataloader.dataset.pipeline = cfg.test_pipeline
    cfg.test_dataloader.update(num_workers=0, batch_size=250, pin_memory=False)
    cfg.test_dataloader.persistent_workers = False
    for name, folder in dict(in1k='val', real='val', objectnet='objectnet').items():
        cfg.variants.sets[name].dataset.data_root = str(imagenet / folder)
    for name in ('v2', 'a', 'r', 'sketch'):
        cfg.variants.sets[name].dataset.data_root = str(imagenet / name)
    cfg.work_dir = str(tmp_path / 'run')
    cfg.load_from = str(tmp_path / 'small.pth')
    cfg.custom_hooks, cfg.log_level = [], 'WARNING'
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model, head_init_scale=1.0)).eval()
    torch.nn.init.normal_(model.head.weight)
    torch.save(dict(state_dict=model.state_dict()), cfg.load_from)
    return cfg, model


@torch.no_grad()
def logits_of(model, dataset, interpolation):
    """torchvision's transforms, built directly."""
    transform = transforms.Compose(
        [
            transforms.Resize(SIZE, interpolation),
            transforms.CenterCrop(SIZE),
            transforms.PILToTensor(),
        ]
    )
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    image = default_collate([transform(open_rgb(info['img_path'])) for info in infos])
    image = model.data_preprocessor(dict(image=image))['image']
    return model(image), torch.tensor([info['label'] for info in infos])


BICUBIC = transforms.InterpolationMode.BICUBIC
BILINEAR = transforms.InterpolationMode.BILINEAR


def test_all_of_them(imagenet, tmp_path):
    cfg, model = small_leaf(imagenet, tmp_path)
    real = tmp_path / 'real.json'
    val = ClassificationImages(str(imagenet / 'val'), classes='imagenet-1k')
    logits, labels = logits_of(model, val, BICUBIC)
    names = [os.path.basename(val.get_data_info(i)['img_path']) for i in range(1000)]
    # Every third image has no label, every other of the rest what the model says.
    lists = [[] if i % 3 == 0 else [int(logits[i].argmax()), 0][: 1 + i % 2] for i in range(1000)]
    for i in range(1000):
        if i % 3 and i % 2 == 0:
            lists[i] = [int(logits[i].argmin())]
    by_name = dict(zip(names, lists))
    real.write_text(json.dumps([by_name[name] for name in sorted(names)]))
    cfg.variants.sets.real.dataset.real_labels = str(real)

    table = evaluate_variants(cfg, 'all')
    found = json.loads((tmp_path / 'run' / 'variants.json').read_text())
    assert found['checkpoint'] == cfg.load_from
    rows = found['variants']
    assert list(rows) == ['in1k', 'v2', 'real', 'a', 'r', 'sketch', 'objectnet']

    def check(name, dataset, interpolation, subset=None):
        scores, targets = logits_of(model, dataset, interpolation)
        if subset:
            scores = scores[:, list(subset)]
            targets = torch.tensor([subset.index(int(y)) for y in targets])
        hits = (scores.topk(5).indices == targets[:, None]).double().mean(0)
        here = rows[name]['here']
        assert here['loss'] == pytest.approx(float(F.cross_entropy(scores, targets)), rel=1e-4)
        assert here['top1'] == pytest.approx(100 * float(hits[0]))
        assert here['top5'] == pytest.approx(100 * float(hits.sum()))
        assert rows[name]['images'] == len(dataset)
        return here['loss']

    plain = check('in1k', val, BICUBIC)
    assert rows['real']['here']['loss'] == pytest.approx(plain, rel=1e-6)
    judged = [i for i in range(1000) if lists[i]]
    expected = 100 * np.mean([i % 2 for i in judged])
    assert rows['real']['here']['top1'] == pytest.approx(expected)
    assert check('v2', NumberedImages(str(imagenet / 'v2')), BILINEAR) != pytest.approx(plain, 1e-4)
    check('sketch', ClassificationImages(str(imagenet / 'sketch')), BICUBIC)
    for name in 'ar':
        dataset = SubsetImages(str(imagenet / name), subset=f'imagenet-{name}')
        check(name, dataset, BICUBIC, dataset.metainfo['subset'])
    check('objectnet', ObjectNetImages(str(imagenet / 'objectnet')), BILINEAR)

    lines = table.splitlines()
    line = next(line for line in lines if line.startswith('ImageNet-A'))
    assert line.split()[1:4] == ['200', '86.154', f'{rows["a"]["here"]["top1"]:.3f}']
    assert lines[-1] == 'published: eva_21k_1k_336px at 336 px'


def test_absent_data_are_told_and_the_rest_runs(imagenet, tmp_path):
    cfg, _ = small_leaf(imagenet, tmp_path)
    cfg.variants.sets.v2.dataset.data_root = str(tmp_path / 'nowhere')
    for name in set(cfg.variants.sets) - {'objectnet', 'v2'}:
        del cfg.variants.sets[name]
    table = evaluate_variants(cfg, 'all')
    assert 'ObjectNet ' in table
    assert table.endswith(
        'data that are not there:\n'
        f'  ImageNetV2 (matched frequency): no folder {tmp_path}/nowhere; '
        'expected folders of class numbers, 0/*.jpeg to 999/*.jpeg'
    )
    # Who names a set wants its row.
    for names in ('v2', 'objectnet,v2'):
        with pytest.raises(UsageError, match='data are not there\n.*\n.*0/'):
            evaluate_variants(cfg, names)
    with pytest.raises(UsageError, match="takes all or some of v2,objectnet, not 'b'"):
        evaluate_variants(cfg, 'v2,b')


def test_a_config_without_variants_is_refused():
    cfg = load_config('pretrain/eva_g_merged30m', 'mmengine')
    with pytest.raises(UsageError, match='needs the key variants, which .*merged30m.py lacks'):
        run_variants(cfg, 'all')


def test_data_are_looked_at_before_the_model_is_built(imagenet, tmp_path):
    cfg, _ = small_leaf(imagenet, tmp_path)
    cfg.load_from = str(tmp_path / 'none.pth')
    cfg.variants.sets.r.dataset.data_root = str(imagenet / 'a')
    with pytest.raises(InputError, match='should hold 200 classes'):
        evaluate_variants(cfg, 'a,r')


def test_a_model_of_other_classes_is_refused(imagenet, tmp_path):
    cfg, _ = small_leaf(imagenet, tmp_path, num_classes=7)
    with pytest.raises(InputError, match=r'model.num_classes is 7, but .* has 1000 classes'):
        evaluate_variants(cfg, 'objectnet')
    cfg.model.num_classes = 1000
    with pytest.raises(InputError, match=r'head.* model 1000.* checkpoint 7'):
        evaluate_variants(cfg, 'objectnet')


def test_frame_of_objectnet(imagenet, tmp_path):
    cfg, model = small_leaf(imagenet, tmp_path)
    cfg.variants.sets.objectnet.crop_border_pixels = 2
    evaluate_variants(cfg, 'objectnet')
    here = json.loads((tmp_path / 'run' / 'variants.json').read_text())['variants']['objectnet']
    dataset = ObjectNetImages(str(imagenet / 'objectnet'))
    _, labels = logits_of(model, dataset, BILINEAR)
    images = [open_rgb(dataset.get_data_info(i)['img_path']) for i in range(len(dataset))]
    transform = transforms.Compose(
        [transforms.Resize(SIZE, BILINEAR), transforms.CenterCrop(SIZE), transforms.PILToTensor()]
    )
    cut = [image.crop((2, 2, image.width - 2, image.height - 2)) for image in images]
    batch = model.data_preprocessor(dict(image=default_collate([transform(x) for x in cut])))
    with torch.no_grad():
        expected = F.cross_entropy(model(batch['image']), labels)
    assert here['here']['loss'] == pytest.approx(float(expected), rel=1e-4)


def test_table():
    rows = [
        Row('ImageNet-A', 7500, dict(top1=50.0, loss=1.25), dict(top1=86.154, top5=96.509)),
        Row('mine', 12, dict(top1=1.0), {}),
    ]
    assert format_table(rows, dict(published_of='the giant')).splitlines()[1:] == [
        'data         images   published    here   published    here   published    here',
        'ImageNet-A    7,500      86.154  50.000      96.509       -           -   1.250',
        'mine             12           -   1.000           -       -           -       -',
        'published: the giant',
    ]


@pytest.mark.slow
def test_tool(imagenet, tmp_path):
    cfg, _ = small_leaf(imagenet, tmp_path)
    cfg.dump(str(tmp_path / 'small.py'))
    tool = [sys.executable, str(ROOT / 'tools' / 'test.py'), 'small.py', 'small.pth']
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '-1'}
    run = dict(cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    done = subprocess.run([*tool, '--variants', 'objectnet'], **run)
    assert done.returncode == 0, done.stderr
    assert 'ObjectNet        6      60.907' in done.stdout
    done = subprocess.run([*tool, '--variants', 'b'], **run)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('test.py: --variants takes all or some of ')
    done = subprocess.run([*tool, '--variants', 'a', '--out', 'x.pkl'], **run)
    assert done.returncode == 2
