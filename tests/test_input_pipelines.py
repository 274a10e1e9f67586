"""The benchmark of input pipelines: its baselines give what ours gives, its tables add up."""

from importlib.util import find_spec

import cv2
import numpy as np
import pytest
import torch

from benchmarks import input_pipelines as bench


def need(host):
    """Skip where a host is absent; mmaction2 cannot be imported before eva_mm mends it."""
    if find_spec(host) is None:
        pytest.skip(f'{host} is not installed')


@pytest.fixture(autouse=True)
def threads():
    """Measuring sets one thread for the process."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    yield
    torch.set_num_threads(before[0])
    cv2.setNumThreads(before[1])


def samples_of(dataset, count):
    from eva_mm.engine.exact_data import PositionedIndex

    return [dataset[PositionedIndex(i % len(dataset), i, 0)] for i in range(count)]


def test_plain_and_trimmed_jitter_agree(tmp_path):
    need('mmdet')
    datasets = bench.detection_datasets(tmp_path, (322, 241), 30, np.random.default_rng(0))
    assert list(datasets) == [
        'mmdet, bitmaps', 'mmdet, polygons', bench.PLAIN, bench.OURS, 'ours, decoded by OpenCV',
        'ours, draft mode',
    ]  # fmt: skip
    plain, ours = (samples_of(datasets[name], 16) for name in (bench.PLAIN, bench.OURS))
    opencv, drafts = (samples_of(dataset, 16) for dataset in list(datasets.values())[4:])
    cut = 0
    for one, other, same, draft in zip(plain, ours, opencv, drafts):
        assert torch.equal(other['inputs'], same['inputs'])
        difference = (one['inputs'].int() - other['inputs']).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01
        assert (one['inputs'].int() - draft['inputs']).abs().float().mean() < 3
        expected = one['data_samples'].gt_instances
        assert 0 < len(expected) <= 30
        cut += len(expected) < 30
        for sample in (other['data_samples'], draft['data_samples']):
            assert sample.metainfo == one['data_samples'].metainfo
            assert torch.equal(sample.gt_instances.bboxes.tensor, expected.bboxes.tensor)
            assert sample.gt_instances.masks.areas.tolist() == expected.masks.areas.tolist()
    assert 0 < cut < 16


def test_mmdets_pipelines_give_the_same_kind_of_sample(tmp_path):
    """Of the same scale and instances, so that they are a fair measure."""
    need('mmdet')
    datasets = bench.detection_datasets(tmp_path, (160, 120), 5, np.random.default_rng(0))
    for name in ('mmdet, bitmaps', 'mmdet, polygons'):
        samples = samples_of(datasets[name], 24)
        sides = [max(sample['inputs'].shape[1:]) for sample in samples]
        assert 128 <= min(sides) < 640 < max(sides) == 1280
        assert all(len(sample['data_samples'].gt_instances.masks) <= 5 for sample in samples)


def test_clips_agree(tmp_path):
    need('mmaction')
    datasets = bench.video_datasets(tmp_path, (96, 72), 20, np.random.default_rng(0))
    plain, ours = (samples_of(datasets[name], 4) for name in (bench.PLAIN, bench.OURS))
    for one, other in zip(plain, ours):
        assert one['inputs'].shape == other['inputs'].shape == (1, 3, 16, 224, 224)
        difference = (one['inputs'].int() - other['inputs']).abs()
        assert difference.max() <= 3
        assert difference.float().mean() < 0.05


@pytest.mark.parametrize(
    ('kind', 'case', 'host', 'expected'),
    [
        ('detection', dict(size=(80, 60), instances=2), 'mmdet',
         {'LoadImageFromFile', 'LargeScaleJitter', 'PackDetInputs'}),
        ('imagenet', dict(size=(80, 60)), 'timm',
         {'open_rgb', 'RandomResizedCropAndInterpolation', 'RandAugment'}),
        ('video', dict(size=(80, 60), frames=17), 'mmaction',
         {'DecordDecode', 'RandomApply: ColorJitterPerFrame', 'FormatShape'}),
    ],
)  # fmt: skip
def test_measurement_and_its_rows(kind, case, host, expected):
    need(host)
    result = bench.measure(kind, case, 3, 1)
    assert bench.OURS in result['seconds']
    assert all(seconds > 0 for seconds in result['seconds'].values())
    assert expected <= set(result['steps'])
    rows = bench.step_rows('case', result['steps'])
    assert sum(float(row[2]) for row in rows) == pytest.approx(
        1000 * sum(result['steps'].values()), abs=0.01 * len(rows)
    )
    speeds = {row[1]: float(row[4]) for row in bench.speed_rows('case', result['seconds'])}
    assert speeds.get(bench.PLAIN, speeds[bench.OURS]) == 1


def test_ratios_by_hand():
    rows = bench.speed_rows('case', {bench.PLAIN: 0.02, bench.OURS: 0.008})
    assert rows == [
        ('case', bench.PLAIN, '50', '20.0', '1.00'), ('case', bench.OURS, '125', '8.0', '2.50')
    ]  # fmt: skip
    steps = bench.step_rows('case', dict(a=0.0598, b=0.04, c=0.0001, d=0.0001))
    assert [row[1:] for row in steps] == [
        ('a', '59.80', '60 %'), ('b', '40.00', '40 %'), ('others', '0.20', '0 %')
    ]  # fmt: skip


@pytest.mark.slow
def test_tables_from_processes_of_their_own(monkeypatch):
    need('timm')
    monkeypatch.setattr(bench, 'CASES', dict(small=('imagenet', dict(size=(60, 50)))))
    speeds, steps = bench.input_pipelines(images=2, repeats=1)
    assert [row[:2] for row in speeds.rows] == [('small', bench.OURS)]
    assert steps.rows[-1][1] == 'others'
    speeds, _ = bench.input_pipelines(kinds=('video',))
    assert speeds.rows == []


def test_texture_is_neither_flat_nor_noise():
    """As photos: 1 to 4 bits per pixel at quality 92."""
    image = bench.texture((320, 240), np.random.default_rng(0))
    assert image.shape == (240, 320, 3)
    _, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert 1 < 8 * len(data) / (320 * 240) < 4
    assert image.std() > 30
