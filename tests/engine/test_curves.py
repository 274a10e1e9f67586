"""Training curves out of the logs of runs."""

import json
import runpy

import cv2
import pytest

from eva_mm.engine.curves import choose_scalars, draw_curves, read_curves
from eva_mm.errors import InputError

from ..helpers import ROOT


def write_log(run, start, records):
    file = run / start / 'vis_data' / 'scalars.json'
    file.parent.mkdir(parents=True)
    file.write_text(''.join(json.dumps(record) + '\n' for record in records))
    return file


@pytest.fixture
def resumed(tmp_path):
    """A run that was cut off at 60 and went on from 40."""
    run = tmp_path / 'run'
    train = [dict(loss=10.0 - step / 10, lr=0.1, iter=step, step=step) for step in (20, 40, 60)]
    # An evaluation at 40, which mmengine numbered by epochs; large objects are not annotated.
    value = {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_s': 0.1, 'coco/bbox_mAP_l': -1.0, 'step': 0}
    write_log(run, '20260101_000000', [*train[:2], value, train[2]])
    again = [dict(loss=20.0 - step / 10, lr=0.01, step=step) for step in (50, 70)]
    write_log(run, '20260102_000000', [*again, {'coco/bbox_mAP': 0.5, 'step': 80}])
    write_log(run, '20260103_000000', [])
    return run


def test_stretches_of_a_resumed_run_are_joined(resumed):
    curves = read_curves(resumed)
    assert curves['loss'] == {20: 8.0, 40: 6.0, 50: 15.0, 70: 13.0}
    assert curves['lr'] == {20: 0.1, 40: 0.1, 50: 0.01, 70: 0.01}
    assert curves['coco/bbox_mAP'] == {40: 0.25, 80: 0.5}
    assert 'coco/bbox_mAP_l' not in curves


def test_an_evaluation_alone_replaces_nothing(resumed):
    write_log(resumed, '20260104_000000', [{'coco/bbox_mAP': 0.75, 'step': 0}])
    assert sorted(read_curves(resumed)['loss']) == [20, 40, 50, 70]


def test_one_stretch_by_its_file(resumed):
    file = resumed / '20260102_000000' / 'vis_data' / 'scalars.json'
    assert sorted(read_curves(file)['loss']) == [50, 70]


@pytest.mark.parametrize('end', ['{"loss": 0.', '{"lo', '{"loss": 0.25, "step": 3', '\n', ''])
def test_a_log_that_is_being_written_is_read(tmp_path, end):
    file = tmp_path / 'scalars.json'
    file.write_text('{"loss": 1.0, "step": 1}\n\n{"loss": 0.5, "step": 2}\n' + end)
    assert read_curves(file)['loss'] == {1: 1.0, 2: 0.5}


def test_a_last_line_needs_no_line_feed(tmp_path):
    file = tmp_path / 'scalars.json'
    file.write_text('{"loss": 1.0, "step": 1}\n{"loss": 0.5, "step": 2}')
    assert read_curves(file)['loss'] == {1: 1.0, 2: 0.5}


def test_dollar_signs_in_names_are_no_formula(tmp_path):
    runs = {'a $^$ b': {'$_$': {1: 1.0}}, 'c': {'$_$': {1: 2.0}}}
    assert draw_curves(runs, tmp_path / 'x.png', ['$_$']).stat().st_size


def test_main_scalars_are_chosen(resumed):
    other = {'time': {1: 0.5}, 'val/mIoU': {1: 0.2}, 'toy/accuracy': {1: 90.0}}
    chosen = choose_scalars([read_curves(resumed), other])
    assert chosen == ['loss', 'lr', 'coco/bbox_mAP', 'toy/accuracy', 'val/mIoU']


def test_picture_shows_what_is_asked_for(resumed, tmp_path):
    curves = read_curves(resumed)
    both = cv2.imread(str(draw_curves({'a': curves}, tmp_path / 'new' / 'both.png')))
    loss = cv2.imread(str(draw_curves({'a': curves}, tmp_path / 'loss.png', ['loss'])))
    two = cv2.imread(str(draw_curves({'a': curves, 'b': curves}, tmp_path / 'b.png', ['loss'])))
    assert both.shape[1] == 3 * loss.shape[1]  # loss, lr, metrics
    assert (loss < 128).any()
    assert two.shape == loss.shape
    assert (two != loss).any()
    assert {p.name for p in tmp_path.glob('*.png')} == {'loss.png', 'b.png'}


def test_wrong_input_is_told(resumed, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no run logged \['los'\].*'loss'"):
        draw_curves({'a': read_curves(resumed)}, tmp_path / 'x.png', ['los'])
    with pytest.raises(InputError, match='scalars.json'):
        read_curves(tmp_path / 'gone')
    broken = tmp_path / 'scalars.json'
    broken.write_text('{"loss": 1.0, "step": 1}\n{"loss": 1\n{"loss": 0.5, "step": 3}\n')
    with pytest.raises(InputError, match='line 2'):
        read_curves(broken)
    main = runpy.run_path(str(ROOT / 'tools' / 'look.py'))['main']
    with pytest.raises(SystemExit, match='^look.py: .*gone'):
        main(['curves', str(tmp_path / 'gone'), '--out', str(tmp_path / 'x.png')])
    assert not (tmp_path / 'x.png').exists()
