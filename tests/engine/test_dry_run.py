"""The dry run on the toy task, and its parts against closed forms."""

import math
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from torch import nn

from eva_mm.engine import dry_run as dr
from eva_mm.engine.launch import load_config
from tests.toy_task import SIDE, config_text, make_data


@pytest.fixture
def cfg(tmp_path):
    make_data(tmp_path / 'data')
    (tmp_path / 'toy.py').write_text(config_text(tmp_path / 'data'))
    return Config.fromfile(tmp_path / 'toy.py')


def run(cfg, capsys, gpus=1):
    status = dr.dry_run(cfg, gpus)
    return status, capsys.readouterr().out


def lines(text):
    """Printed lines with runs of blanks made single."""
    return [' '.join(line.split()) for line in text.splitlines()]


def test_a_run_that_could_start(cfg, capsys):
    before = cfg.pretty_text
    status, text = run(cfg, capsys, gpus=2)
    assert status == 0
    assert cfg.pretty_text == before
    # Width 4, depth 3: patches 3*4*4*4 + 4 (frozen), blocks 3 * (8 + 20), pyramid 20, tokens 8.
    for line in (
        'ToyClassifier 320 124',
        'backbone 308 112',
        'query 2 2',
        'head 10 10',
        'frozen: backbone.patch_embed',
        'train: 16 samples, 2 classes',
        'ToyCrop(crop_size=(16, 8))',
        'layer_0_decay 0.00625 0.1 2 8',
        'layer_3_decay 0.05 0.1 4 28',
        'layer_4_decay 0.1 0.1 5 32',
        '4 per GPU x 2 GPUs x 1 accumulated = 8 images per update',
        'base batch: 8',
        '15 epochs of 2 iterations on these data',
        'first 0 0.000625 0.01',
        'warm-up (LinearLR) ends 10 0.00625 0.1',
        'MultiStepLR milestone 20 0.000625 0.01',
        'none: every weight starts from its initialisation',
        'ready: this run can start',
    ):
        assert line in lines(text), f'{line!r} not in\n{text}'


def test_what_is_missing_is_listed_by_path(cfg, capsys, tmp_path):
    cfg.train_dataloader.dataset.ann_file = 'train.json'
    shutil.rmtree(tmp_path / 'data' / 'images')
    cfg.load_from = str(tmp_path / 'weights.pth')
    cfg.val_evaluator.ann_file = str(tmp_path / 'val.json')
    status, text = run(cfg, capsys)
    assert status == 1
    missing = lines(text)[lines(text).index('== Missing') + 1 :]
    data = tmp_path / 'data'
    assert missing == [
        f'annotation file: {data}/train.json',
        f'folder: {data}/images',
        f'images: 16 of 16 sampled, such as {data}/images/0.npy (val)',
        f'annotation file: {tmp_path}/val.json',
        f'checkpoint: {tmp_path}/weights.pth',
        '',
        'cannot start: 5 things missing',
    ]


def test_a_broken_list_is_reported(cfg, capsys, tmp_path):
    (tmp_path / 'data' / 'list.json').write_text('{')
    status, text = run(cfg, capsys)
    assert status == 1
    assert 'train data that can be read (JSONDecodeError' in text


def test_where_weights_come_from(cfg, tmp_path, monkeypatch):
    cfg.load_from = 'https://example.org/weights.pth'
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='eva://eva_psz14')
    assert list(dr.weight_sources(cfg)) == ['https://example.org/weights.pth', 'eva://eva_psz14']
    assert dr.weight_state('https://example.org/weights.pth') == 'will be downloaded'
    monkeypatch.setattr(dr, 'cached_file', lambda name: None)
    assert dr.weight_state('eva://eva_psz14') == 'will be downloaded'
    monkeypatch.setattr(dr, 'cached_file', lambda name: tmp_path / name.removeprefix('eva://'))
    assert dr.weight_state('eva://eva_psz14') == f'found in the cache, {tmp_path}/eva_psz14'
    assert dr.weight_state(str(tmp_path)) == 'found'


def test_an_unknown_published_name_is_missing(cfg, capsys):
    cfg.load_from = 'eva://eva_psz15'
    status, text = run(cfg, capsys)
    assert status == 1
    assert 'did you mean' in text
    assert 'checkpoint: eva://eva_psz15' in lines(text)


def test_accumulation_and_auto_scaling(cfg, capsys):
    cfg.optim_wrapper.accumulative_counts = 3
    cfg.auto_scale_lr.enable = True
    _, text = run(cfg, capsys, gpus=4)
    assert '4 per GPU x 4 GPUs x 3 accumulated = 48 images per update' in lines(text)
    assert 'layer_4_decay 0.2 0.1 5 32' in lines(text)  # mmengine's factor: 16 / 8
    assert 'one update every 3 iterations' in lines(text)


def test_a_run_by_epochs(cfg, capsys):
    cfg.train_cfg = dict(by_epoch=True, max_epochs=6)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.5, by_epoch=True, end=2, convert_to_iter_based=True),
        dict(type='MultiStepLR', by_epoch=True, milestones=[3, 5], gamma=0.1),
    ]
    _, text = run(cfg, capsys)
    # 16 images in batches of 4: an epoch is 4 iterations, and the warm-up ends with the 8th.
    assert '24 iterations of 4 iterations on these data' in lines(text)
    for line in (
        'warm-up (LinearLR) ends 7 0.00625 0.1',
        'MultiStepLR milestone 12 0.000625 0.01',
        'MultiStepLR milestone 20 6.25e-05 0.001',
    ):
        assert line in lines(text), text


def test_an_epoch_of_unknown_length(cfg, capsys):
    cfg.train_cfg = dict(by_epoch=True, max_epochs=6)
    cfg.train_dataloader.dataset.ann_file = 'none.json'
    _, text = run(cfg, capsys)
    assert 'rates not simulated' in text
    cfg.param_scheduler = dict(type='StepLR', step_size=2, gamma=0.1)
    _, text = run(cfg, capsys)
    assert 'last, StepLR ends 5 6.25e-05 0.001' in lines(text)


@pytest.mark.parametrize(
    ('images', 'gpus', 'batch', 'drop_last', 'length'),
    [(10, 1, 4, False, 3), (10, 1, 4, True, 2), (10, 3, 2, False, 2), (None, 1, 1, False, None)],
)
def test_epoch_length(images, gpus, batch, drop_last, length):
    cfg = Config(dict(train_dataloader=dict(batch_size=batch, drop_last=drop_last)))
    assert dr.epoch_length(cfg, images, gpus) == length


def two_groups(low, high):
    params = [dict(params=[nn.Parameter(torch.zeros(1))], lr=lr) for lr in (low, high)]
    return OptimWrapper(torch.optim.AdamW(params))


def test_published_detection_schedule():
    """LVIS: 250 iterations of warm-up from 0.001, steps at 70,000 and 75,000, 75,001 in all."""
    schedulers = [
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=251),
        dict(type='MultiStepLR', by_epoch=False, milestones=[70000, 75000], gamma=0.1),
    ]
    counted, points = dr.schedule_points(schedulers, two_groups(2e-6, 2e-4), 75001, False, None)
    assert counted == 'iteration'
    factors = {0: 0.001, 250: 1.0, 70000: 0.1, 75000: 0.01}
    assert [point.step for point in points] == list(factors)
    for point in points:
        assert point.lowest_lr == pytest.approx(2e-6 * factors[point.step])
        assert point.highest_lr == pytest.approx(2e-4 * factors[point.step])


def test_a_floor_of_the_rate_is_the_same_for_all_groups():
    """`eta_min` is absolute, so the lowest group is no fixed share of the highest."""
    cosine = dict(type='CosineAnnealingLR', by_epoch=False, T_max=100, eta_min=1e-6)
    _, points = dr.schedule_points([cosine], two_groups(1e-5, 1e-3), 100, False, None)
    last = points[-1]
    assert last.step == 99
    for base, rate in ((1e-5, last.lowest_lr), (1e-3, last.highest_lr)):
        closed = 1e-6 + (base - 1e-6) * (1 + math.cos(math.pi * 99 / 100)) / 2
        assert rate == pytest.approx(closed)


@pytest.mark.parametrize(
    ('preprocessor', 'pipeline', 'backbone', 'size'),
    [
        (dict(type='P', pad_size=(1280, 960)), [], {}, (1280, 960)),
        (dict(type='P', size=896), [dict(type='Crop', crop_size=224)], {}, (896, 896)),
        ({}, [dict(type='Resize', scale=(1333, 800)), dict(type='Pack')], {}, (800, 1333)),
        (
            dict(type='P', pad_size_divisor=32),
            [dict(type='Choice', scales=[(1333, 640), (1333, 800)])],
            {},
            (800, 1344),
        ),
        ({}, [dict(type='Flip', prob=0.5)], dict(type='V', img_size=336), (336, 336)),
        ({}, [dict(type='Flip', prob=0.5)], {}, None),
    ],
)
def test_training_size(preprocessor, pipeline, backbone, size):
    model = dict(data_preprocessor=preprocessor, backbone=backbone)
    # Wrapped, as repeated and class-balanced data sets are.
    dataset = dict(type='Repeat', dataset=dict(type='Images', pipeline=pipeline))
    cfg = Config(dict(model=model, train_dataloader=dict(dataset=dataset)))
    assert dr.training_size(cfg) == size


def test_size_of_the_toy_task_is_height_then_width(cfg):
    assert dr.training_size(cfg) == (SIDE, 16)


@pytest.mark.slow
def test_a_stock_mmdet_config(capsys, tmp_path):
    pytest.importorskip('mmdet')
    config = tmp_path / 'stock.py'
    config.write_text("_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'")
    cfg = load_config(str(config))
    status, text = run(cfg, capsys, gpus=8)
    assert status == 1
    assert '2 per GPU x 8 GPUs x 1 accumulated = 16 images per update' in lines(text)
    assert 'torchvision://resnet18: will be downloaded' in lines(text)
    assert 'annotation file: data/coco/annotations/instances_train2017.json' in lines(text)
    assert 'activations of backbone and neck (800 x 1344 px, batch 2, float32)' in text


def test_weights_that_cannot_be_read_or_do_not_fit(cfg, capsys, tmp_path):
    page = tmp_path / 'page.pth'
    page.write_text('<!DOCTYPE html>')
    cfg.load_from = str(page)
    status, text = run(cfg, capsys)
    assert status == 1
    assert 'checkpoint that fits: ' in text
    assert 'a web page' in text
