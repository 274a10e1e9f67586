"""Bad input, as a table: one error that names file or key, what was found, what was expected.

Below it, input that is odd but legitimate: what it must train on, or count as.

Elsewhere: malicious, truncated and HTML checkpoints (tests/engine/test_checkpoint.py), checkpoints
of another size (tests/engine/test_strict_loading.py), misspelt keys
(tests/engine/test_config_check.py), results files (tests/detection/test_metrics.py).
"""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('mmdet')
from mmdet.registry import DATASETS, MODELS  # noqa: E402
from mmengine.dataset import pseudo_collate  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from pycocotools import mask as mask_utils  # noqa: E402

from eva_mm.demo import generate_lvis  # noqa: E402
from eva_mm.detection.metrics import EVACocoMetric, EVALVISMetric  # noqa: E402
from eva_mm.errors import InputError  # noqa: E402

from .detection.test_datasets import image, instance, make_data, write  # noqa: E402
from .helpers import load_config, shrink_detector  # noqa: E402
from .toy_task import config_text  # noqa: E402
from .toy_task import make_data as make_toy_data  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PIPELINE = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True, poly2mask=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='LargeScaleJitter', scale=(64, 64), ratio_range=(0.8, 1.25)),
    dict(type='PackDetInputs'),
]
BITMAPS = [PIPELINE[0], {**PIPELINE[1], 'poly2mask': True}, *PIPELINE[2:]]
BOXES = [PIPELINE[0], dict(type='LoadAnnotations', with_bbox=True), *PIPELINE[2:]]
H, W = 48, 64  # of every image of `make_data`


def build(tmp_path, data, kind='EVACocoDataset', pipeline=PIPELINE, **options):
    """A data set of `data`, with a picture for each of its images."""
    init_default_scope('mmdet')
    for entry in data['images'] if isinstance(data['images'], list) else ():
        if isinstance(entry, dict) and 'file_name' in entry:
            pixels = np.random.default_rng(entry['id']).integers(0, 256, (H, W, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / entry['file_name'])
    if 'ann_file' not in options:
        options['ann_file'] = write(tmp_path, data)
    return DATASETS.build(
        dict(type=kind, data_prefix=dict(img=str(tmp_path)), pipeline=pipeline, **options)
    )


def one(**changes):
    """A data set of one image with one instance, changed."""
    return dict(
        images=[image(1)], categories=make_data()['categories'], annotations=[_one(**changes)]
    )


def _one(**changes):
    entry = instance(5, 1, 7)
    entry.update(changes)
    return {key: value for key, value in entry.items() if value is not ...}


def run_lengths(size=(H, W), **changes):
    bits = np.zeros(size, dtype=np.uint8, order='F')
    bits[8:20, 10:30] = 1
    code = mask_utils.encode(bits)
    return dict(size=list(size), counts=code['counts'].decode(), **changes)


# ---------------------------------------------------------------------- annotation files, by table

ANNOTATIONS = {
    'no image lists': (dict(images=3, categories=[]), "expected a list under 'images'"),
    'image without width': (
        dict(one(), images=[dict(id=1, height=9, file_name='a.jpg')]),
        r"images\[0\] \(id=1\) has no 'width', found \['file_name', 'height', 'id'\]",
    ),
    'image without extent': (
        dict(one(), images=[dict(image(1), width=0)]),
        'image id=1 is 0 x 48 px, expected positive',
    ),
    'image without file': (
        dict(one(), images=[dict(id=1, height=9, width=9)]),
        r"\(id=1\) has no 'file_name'",
    ),
    'image list of names': (
        dict(one(), images=['a.jpg']),
        r'images\[0\] should be an object, found a\.jpg',
    ),
    'no images': (dict(one(), images=[], annotations=[]), 'lists no images'),
    'no categories': (dict(one(), categories=[], annotations=[]), 'lists no categories'),
    'no ground truth': (dict(one(), annotations=[]), 'none of 1 images is left for training'),
    'annotation without category': (
        one(category_id=...),
        r"annotations\[0\] \(id=5\) has no 'category_id'",
    ),
    'unknown category': (
        one(category_id=99),
        'annotation id=5 is of category 99, which is not listed under categories',
    ),
    'unknown image': (one(image_id=77), 'annotation id=5 belongs to image 77, which is not listed'),
    'box of three numbers': (
        one(bbox=[1, 2, 3]),
        r'annotation id=5 \(image 1\): bbox should be \[x, y, width, height\], found \[1, 2, 3\]',
    ),
    'no box': (one(bbox=...), r'bbox should be \[x, y, width, height\], found None'),
    'box with NaN': (one(bbox=[1, 2, float('nan'), 3]), 'bbox should be .*nan'),
    'polygon of words': (one(segmentation=[['a', 'b']]), r'segmentation should be polygons'),
    'flat polygon': (one(segmentation=[1, 2, 3, 4, 5, 6]), r'segmentation should be polygons'),
    'no segmentation': (
        one(segmentation=...),
        r'annotation id=5 \(image 1\): no segmentation, which the pipeline loads',
    ),
    'empty segmentation': (one(segmentation=[]), 'no segmentation, which the pipeline loads'),
    'run lengths for polygons': (
        one(segmentation=run_lengths()),
        'its mask is run lengths, the pipeline takes polygons; set poly2mask=True',
    ),
    'run lengths of another size': (
        one(segmentation=run_lengths(size=(W, H))),
        r'its mask is \[64, 48\] \(height, width\), its image is \[48, 64\]',
    ),
    'run lengths that end too soon': (
        one(segmentation=dict(size=[H, W], counts=[5, 10])),
        'run lengths sum to 15, expected 3072',
    ),
    'run lengths without counts': (
        one(segmentation=dict(size=[H, W])),
        r"run lengths should have size and counts, found \['size'\]",
    ),
    'nothing but degenerate polygons': (
        one(segmentation=[[1, 1, 2, 2]]),
        'none of 1 images is left for training',
    ),
}


@pytest.mark.parametrize('name', ANNOTATIONS)
def test_annotations(tmp_path, name):
    data, message = ANNOTATIONS[name]
    with pytest.raises(InputError, match=message) as error:
        build(tmp_path, data)
    assert str(tmp_path / 'annotations.json') in str(error.value)


NO_JSON = {
    'empty': (b'', 'annotation file is empty'),
    'cut off': (b'{"images": [{"id":', 'is not valid JSON'),
    'a web page': (b'<!DOCTYPE html><html>404</html>', 'is not valid JSON'),
    'compressed': (b'\x1f\x8b\x08\x00\xff\xfe', 'is not text'),
    'results': (b'[{"image_id": 1}]', 'found a list'),
    'COCO for LVIS': (json.dumps(dict(one(), images=[dict(id=1, width=9, height=9)])).encode(),
                      'is not LVIS'),
}  # fmt: skip


@pytest.mark.parametrize('reader', ['dataset', 'metric'])
@pytest.mark.parametrize('name', NO_JSON)
def test_files_that_are_no_annotations(tmp_path, name, reader):
    content, message = NO_JSON[name]
    path = tmp_path / 'annotations.json'
    path.write_bytes(content)
    read = dict(
        metric=lambda: EVALVISMetric(ann_file=str(path)),
        dataset=lambda: build(tmp_path, {'images': ()}, 'EVALVISDataset', ann_file=str(path)),
    )
    with pytest.raises(InputError, match=message) as error:
        read[reader]()
    assert str(path) in str(error.value)


# ------------------------------------------------------------------------------------------- images


def break_image(path, how):
    if how == 'missing':
        path.unlink()
    elif how == 'empty':
        path.write_bytes(b'')
    elif how == 'truncated':
        path.write_bytes(path.read_bytes()[:300])
    elif how == 'a web page':
        path.write_bytes(b'<html>404</html>')
    elif how == 'broken png':
        Image.new('RGB', (W, H)).save(path, format='png')
        path.write_bytes(path.read_bytes()[:40] + b'\0' * 60)


BREAKS = ['missing', 'empty', 'truncated', 'a web page', 'broken png']


@pytest.mark.parametrize('decoder', ['pillow', 'cv2'])
@pytest.mark.parametrize('how', BREAKS)
def test_unreadable_images_are_named(tmp_path, how, decoder):
    if decoder == 'cv2' and how in ('truncated', 'broken png'):
        pytest.skip('OpenCV gives what it could read, without an error')
    pipeline = [dict(PIPELINE[0], imdecode_backend=decoder), *PIPELINE[1:]]
    for test_mode in (False, True):
        dataset = build(tmp_path, make_data(), pipeline=pipeline, test_mode=test_mode)
        break_image(tmp_path / '10.jpg', how)
        with pytest.raises(OSError, match=r'cannot read image .*10\.jpg, listed in .*\.json') as e:
            dataset[0]
        assert isinstance(e.value, FileNotFoundError) == (how == 'missing')


def test_the_switch_skips_and_counts(tmp_path):
    """Also in workers; the next image of the data set stands in, whatever the workers."""
    data = dict(
        make_data(),
        images=[image(i) for i in range(1, 5)],
        annotations=[instance(i, i, 7) for i in range(1, 5)],
    )
    seen = []
    for workers in (0, 2):
        dataset = build(tmp_path, data, skip_unreadable=True)
        break_image(tmp_path / '2.jpg', 'truncated')
        break_image(tmp_path / '4.jpg', 'missing')
        loader = torch.utils.data.DataLoader(
            dataset, batch_size=2, num_workers=workers, collate_fn=pseudo_collate
        )
        seen.append([s.img_id for batch in loader for s in batch['data_samples']])
        assert dataset.num_replaced == 2
    assert seen == [[1, 3, 3, 1]] * 2
    test = build(tmp_path, data, skip_unreadable=True, test_mode=True)
    break_image(tmp_path / '2.jpg', 'truncated')
    with pytest.raises(OSError, match=r'cannot read image .*2\.jpg'):
        test[1]


def test_nothing_readable_ends(tmp_path):
    dataset = build(tmp_path, one(), skip_unreadable=True)
    break_image(tmp_path / '1.jpg', 'missing')
    with pytest.raises(OSError, match='none of the 1 images of .*json can be read'):
        dataset[0]


def test_an_image_of_another_size_is_an_error(tmp_path):
    """Its targets would be displaced."""
    dataset = build(tmp_path, one())
    Image.new('RGB', (30, 20)).save(tmp_path / '1.jpg')
    with pytest.raises(InputError, match=r'1\.jpg is 30 x 20 px .* but 64 x 48 px in .*json'):
        dataset[0]


# --------------------------------------------------------------------- odd, but legitimate targets

SQUARE = [10, 8, 30, 8, 30, 20, 10, 20]
BOW_TIE = [10, 8, 30, 20, 30, 8, 10, 20]
ODD = {
    'box outside the image': (dict(bbox=[500, 500, 9, 9]), [4, 4, 14, 14]),
    'box of negative size': (dict(bbox=[30, 20, -20, -12]), [4, 4, 14, 14]),
    'box without area': (dict(bbox=[10, 8, 0, 0]), [4, 4, 14, 14]),
    'polygon across the border': (
        dict(segmentation=[[50, 8, 90, 8, 90, 20, 50, 20]]),
        [50, 8, 64, 20],
    ),
    'polygon outside': (dict(segmentation=[[70, 8, 90, 8, 90, 20, 70, 20]]), None),
    'a part of two points': (dict(segmentation=[[1, 1, 2, 2], SQUARE]), [10, 8, 30, 20]),
    'an odd coordinate': (dict(segmentation=[[1, 1, 2, 2, 3, 3, 4], SQUARE]), [10, 8, 30, 20]),
    'points on a line': (dict(segmentation=[[1, 1, 5, 5, 9, 9]]), None),
    'three times the same point': (dict(segmentation=[[4, 4] * 3]), None),
    'closed after two points': (dict(segmentation=[[1, 1, 9, 9, 1, 1]]), None),
    'line there and back': (dict(segmentation=[[1, 1, 9, 9, 5, 5, 1, 1]]), None),
    # The published repair keeps a part of a bow tie; box and mask must tell the same of it.
    'bow tie': (dict(segmentation=[BOW_TIE]), 'any'),
    'bow tie across the border': (
        dict(segmentation=[[54, 8, 74, 20, 74, 8, 54, 20]]), 'any or none'
    ),
    'touching itself': (
        dict(segmentation=[[10, 8, 20, 14, 30, 8, 30, 20, 20, 14, 10, 20]]), 'any'
    ),
}  # fmt: skip


@pytest.fixture(scope='module')
def detector():
    torch.manual_seed(0)
    cfg = shrink_detector(load_config('coco/eva_cascade'), pad_size=(64, 64), img_size=64)
    model = MODELS.build(cfg.model)
    model.init_weights()
    wrapper = build_optim_wrapper(
        model, dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0))
    )
    return model.train(), wrapper


def identity(pipeline):
    """The pipeline at scale 1 without flip, so that targets can be compared with numbers."""
    return [
        *pipeline[:2],
        dict(type='LargeScaleJitter', scale=(W, H), ratio_range=(1, 1)),
        dict(type='PackDetInputs'),
    ]


def loss_of(detector, dataset, index=0):
    model, wrapper = detector
    batch = pseudo_collate([dataset[index]])
    return model.train_step(batch, wrapper)


@pytest.mark.parametrize('name', ODD)
def test_odd_instances_become_right_targets_or_none(tmp_path, detector, name):
    """A second, plain instance stays what it is."""
    changes, expected = ODD[name]
    data = one(**changes)
    plain = instance(6, 1, 2, bbox=(2, 30, 10, 10))
    data['annotations'].append(plain)
    dataset = build(tmp_path, data, pipeline=identity(PIPELINE))
    found = dataset[0]['data_samples'].gt_instances
    boxes, masks = found.bboxes.tensor, found.masks
    assert boxes[-1].tolist() == [2, 30, 12, 40]
    assert len(boxes) in {'None': (1,), 'any or none': (1, 2)}.get(str(expected), (2,))
    for box, mask in zip(boxes.tolist(), masks.to_ndarray()):
        ys, xs = np.nonzero(mask)
        tight = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert np.abs(np.subtract(box, tight)).max() <= 1, (box, tight)
    if isinstance(expected, list):
        assert boxes[0].tolist() == expected
    losses = loss_of(detector, build(tmp_path, data))
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in losses.values()), losses


NO_MASKS = {
    'outside': ([500, 500, 9, 9], None),
    'negative': ([30, 20, -20, -12], None),
    'no area': ([10, 8, 0, 5], None),
    'across the border': ([50, 40, 30, 30], [50, 40, 64, 48]),
    'before the image': ([-20, -20, 40, 40], [0, 0, 20, 20]),
}


@pytest.mark.parametrize('name', NO_MASKS)
def test_boxes_without_masks_are_clipped_or_dropped(tmp_path, name):
    box, expected = NO_MASKS[name]
    dataset = build(tmp_path, one(bbox=box, segmentation=...), pipeline=identity(BOXES))
    found = dataset[0]['data_samples'].gt_instances.bboxes.tensor.tolist()
    assert found == ([expected] if expected else [])


def uncompressed():
    code = run_lengths()
    bits = mask_utils.decode(dict(code, counts=code['counts'].encode()))
    changes = np.flatnonzero(np.diff(bits.ravel(order='F'))) + 1
    return dict(size=[H, W], counts=np.diff([0, *changes, H * W]).tolist())


@pytest.mark.parametrize('code', [run_lengths(), uncompressed()], ids=['compressed', 'plain'])
def test_run_lengths(tmp_path, detector, code):
    """Crowds are no targets; instances train as bitmaps, beside polygons."""
    data = one(segmentation=code, bbox=[10, 8, 20, 12])
    data['annotations'].append(instance(6, 1, 2, bbox=(2, 30, 10, 10)))
    dataset = build(tmp_path, data, pipeline=identity(BITMAPS))
    found = dataset[0]['data_samples'].gt_instances
    # mmcv rasterises polygons with their right and lower edge: the second is a pixel larger.
    assert found.bboxes.tensor[0].tolist() == [10, 8, 30, 20]
    assert found.masks.masks[0].sum() == 12 * 20
    losses = loss_of(detector, build(tmp_path, data, pipeline=BITMAPS))
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in losses.values())

    data['annotations'][0]['iscrowd'] = 1
    crowd = build(tmp_path, data)
    assert [i['ann_id'] for i in crowd.get_data_info(0)['instances']] == [6]
    assert torch.isfinite(loss_of(detector, crowd)['loss'])


@pytest.mark.parametrize('code', [run_lengths(), uncompressed()], ids=['compressed', 'plain'])
@pytest.mark.parametrize('metric', ['bbox', 'segm'])
def test_detections_on_crowds_are_ignored(tmp_path, metric, code):
    """With a crowd, a detection inside it is no false positive; on an image without, it is one."""
    crowd = instance(5, 1, 7, bbox=(10, 8, 20, 12), iscrowd=1, segmentation=code)
    plain = instance(6, 1, 7, bbox=(2, 30, 10, 10))
    right = np.zeros((H, W), np.uint8, order='F')
    right[30:40, 2:12] = 1
    inside = np.zeros((H, W), np.uint8, order='F')
    inside[10:18, 12:28] = 1
    results = [_result(inside, [12, 10, 16, 8], 0.9), _result(right, [2, 30, 10, 10], 0.5)]
    path = tmp_path / 'results.json'
    path.write_text(json.dumps(results))
    for annotations, expected in (([crowd, plain], 1.0), ([plain], 0.5)):
        data = dict(one(), annotations=annotations)
        ours = EVACocoMetric(ann_file=write(tmp_path, data), metric=metric)
        value = ours.evaluate_results_file(str(path))[f'coco/{metric}_mAP']
        assert value == pytest.approx(expected, abs=0.01)


def _result(bits, box, score):
    code = mask_utils.encode(bits)
    return dict(
        image_id=1, category_id=7, score=score, bbox=box,
        segmentation=dict(size=[H, W], counts=code['counts'].decode()),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ metrics

METRIC_FILES = {
    'no area': (one(area=...), r"annotations\[0\] \(id=5\) has no 'area'"),
    'no categories': (dict(one(), categories=[], annotations=[]), 'lists no categories'),
    'no mask': (one(segmentation=...), "annotation id=5 has no mask, which metric 'segm' needs"),
    'empty mask': (one(segmentation=[]), "annotation id=5 has no mask, which metric 'segm' needs"),
}


@pytest.mark.parametrize('kind', [EVACocoMetric, EVALVISMetric])
@pytest.mark.parametrize('name', METRIC_FILES)
def test_ground_truth_of_metrics(tmp_path, name, kind):
    data, message = METRIC_FILES[name]
    with pytest.raises(InputError, match=message) as error:
        kind(ann_file=write(tmp_path, data), metric=['bbox', 'segm'])
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize('kind', [EVACocoMetric, EVALVISMetric])
def test_empty_ground_truth_counts_as_nothing_annotated(tmp_path, kind):
    metric = kind(ann_file=write(tmp_path, dict(one(), annotations=[])))
    path = tmp_path / 'results.json'
    path.write_text(json.dumps([dict(image_id=1, category_id=7, score=0.5, bbox=[1, 1, 5, 5])]))
    assert set(metric.evaluate_results_file(str(path)).values()) == {-1.0}


RESULTS = {
    'unknown category': (dict(category_id=99), r'1 category_id not in the annotations: \[99\]'),
    'unknown image': (dict(image_id=99), r'1 image_id not in the annotations: \[99\]'),
    'no score': (dict(score=None), 'record 0: score must be a finite number, found None'),
}


@pytest.mark.parametrize('name', RESULTS)
def test_results(tmp_path, name):
    """More of them: tests/detection/test_metrics.py."""
    changes, message = RESULTS[name]
    metric = EVACocoMetric(ann_file=write(tmp_path, one()))
    path = tmp_path / 'results.json'
    record = dict(image_id=1, category_id=7, score=0.5, bbox=[1, 1, 5, 5])
    path.write_text(json.dumps([{**record, **changes}]))
    with pytest.raises(ValueError, match=message) as error:
        metric.evaluate_results_file(str(path))
    assert str(path) in str(error.value)


# ------------------------------------------------------------------------------- through the tools


def call(*command, folder, **environment):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', **environment}
    env['CUDA_VISIBLE_DEVICES'] = '-1'
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


TRAIN = ROOT / 'tools' / 'train.py'


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp('toy')
    make_toy_data(folder / 'data')
    (folder / 'toy.py').write_text(config_text(folder / 'data'))
    return folder


def fake_host(site, name, text):
    (site / name).mkdir(parents=True)
    (site / name / '__init__.py').write_text(text)


HOSTS = {
    'missing': (
        "raise ModuleNotFoundError(\"No module named 'mmdet'\", name='mmdet')\n",
        'mmdet >= 3.3.0, < 4.0, which is not installed',
    ),
    'of a wrong version': (
        "__version__ = '2.28.0'\n",
        'mmdet >= 3.3.0, < 4.0, but found 2.28.0',
    ),
}


@pytest.mark.parametrize('name', HOSTS)
@pytest.mark.parametrize('base', ["_base_ = 'mmdet::_base_/default_runtime.py'\n", ''])
def test_host_packages(toy, tmp_path, name, base):
    text, message = HOSTS[name]
    fake_host(tmp_path / 'site', 'mmdet', text)
    config = tmp_path / 'leaf.py'
    config.write_text(f"{base}custom_imports = dict(imports=['eva_mm.detection'])\n")
    path = f'{tmp_path / "site"}:{ROOT}'
    status, printed = call(TRAIN, config, folder=tmp_path, PYTHONPATH=path)
    assert status == 1, printed
    assert 'Traceback' not in printed
    assert f'train.py: eva_mm needs {message}' in printed
    assert 'det.txt' in printed
    assert not (tmp_path / 'work_dirs').exists()


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_without_mmengine(tmp_path, tool):
    fake_host(tmp_path, 'mmengine', "raise ModuleNotFoundError('No module', name='mmengine')\n")
    script = ROOT / 'tools' / f'{tool}.py'
    status, printed = call(script, '--help', folder=tmp_path, PYTHONPATH=f'{tmp_path}:{ROOT}')
    assert status == 1
    assert 'Traceback' not in printed
    assert 'eva_mm needs mmengine >= 0.10.7, < 1.0, which is not installed' in printed
    assert 'requirements/mmcv.txt' in printed


def test_misspelt_keys_are_warned_of_and_the_run_goes_on(toy, tmp_path):
    options = (
        'optim_wrapper.optimizer.weigth_decay=0.1',
        'param_schedulers=[]',
        'val_dataloader.batchsize=3',
    )
    _, printed = call(TRAIN, 'toy.py', '--dry-run', '--cfg-options', *options, folder=toy)
    assert "optim_wrapper.optimizer.weigth_decay is nothing that AdamW takes; 'weight_decay'?" in (
        printed
    )
    assert "'param_schedulers' is nothing that the Runner takes; 'param_scheduler'?" in printed
    assert "val_dataloader.batchsize is nothing that a data loader takes; 'batch_size'?" in printed


def test_a_config_that_is_no_python(tmp_path):
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    status, printed = call(TRAIN, 'broken.py', folder=tmp_path)
    assert status == 1
    assert 'Traceback' not in printed
    assert 'train.py: config broken.py is no Python' in printed


@pytest.fixture
def taken_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        server.listen()
        yield str(server.getsockname()[1])


def test_a_port_in_use(toy, taken_port):
    """As torchrun would start it, and by the shell script."""
    rank = dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1')
    launch = ('--launcher', 'pytorch', '--work-dir', 'taken')
    status, printed = call(TRAIN, 'toy.py', *launch, folder=toy, MASTER_PORT=taken_port, **rank)
    assert status == 1, printed
    assert f'train.py: port {taken_port} (MASTER_PORT) is in use' in printed
    assert 'PORT=29501' in printed
    done = subprocess.run(
        [ROOT / 'tools' / 'dist_train.sh', 'toy.py', '2'],
        cwd=toy,
        env={**os.environ, 'PORT': taken_port},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f'port {taken_port} is in use' in done.stderr
    assert 'PORT=29501' in done.stderr


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """The demo config on a little data of its own."""
    folder = tmp_path_factory.mktemp('demo')
    generate_lvis(folder / 'data', num_train=24, num_val=12, size=96)
    (folder / 'leaf.py').write_text(
        textwrap.dedent("""\
        _base_ = 'eva_mm::demo/lvis.py'
        loading = dict(batch_size=1, dataset=dict(data_root='data/'))
        train_dataloader = loading
        val_dataloader = loading
        val_evaluator = dict(ann_file='data/annotations/lvis_v1_val.json')
        train_cfg = dict(max_iters=1, val_interval=1)
        """)
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ('option', 'message'),
    [
        (
            'train_dataloader.dataset.ann_file=gone.json',
            'annotation file not found: data/gone.json',
        ),
        (
            'train_dataloader.dataset.data_prefix.img=elsewhere',
            'cannot read image data/elsewhere/train2017/',
        ),
        ('load_from=wrong.pth', 'none of the'),
    ],
)
def test_mistakes_of_a_detection_run(demo, tmp_path, option, message):
    torch.save(dict(state_dict=dict(conv=torch.zeros(1))), demo / 'wrong.pth')
    work = tmp_path / 'work'
    status, printed = call(
        TRAIN, 'leaf.py', '--work-dir', work, '--cfg-options', option, folder=demo
    )
    assert status == 1, printed
    last = printed[printed.rindex('train.py: ') :]
    assert message in last
    assert 'Traceback' not in printed
    assert list(work.rglob('*.pth')) == []


# --------------------------------------------------------------------------- processes and samples


@pytest.mark.parametrize('rank', range(4))
def test_more_processes_than_images(tmp_path, monkeypatch, rank):
    """Each process trains; in tests samples repeat, and the evaluator cuts the surplus."""
    from mmdet.registry import DATA_SAMPLERS
    from mmengine.dataset import sampler as mmengine_sampler

    from eva_mm.engine import exact_data

    for module in (exact_data, mmengine_sampler):
        monkeypatch.setattr(module, 'get_dist_info', lambda: (rank, 4))
    dataset = build(tmp_path, one())
    for kind in (
        dict(type='ExactInfiniteSampler'),
        dict(type='InfiniteRepeatFactorSampler', repeat_thr=0.001),
    ):
        sampler = DATA_SAMPLERS.build(dict(kind, seed=0), default_args=dict(dataset=dataset))
        endless = iter(sampler)
        assert [int(next(endless)) for _ in range(3)] == [0, 0, 0]
    cfg = load_config('coco/eva_cascade').val_dataloader.sampler
    sampler = DATA_SAMPLERS.build(cfg, default_args=dict(dataset=dataset))
    assert list(sampler) == [0]
