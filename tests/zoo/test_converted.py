"""`eva://NAME` through mmengine's loaders: converted once, shared, with class names."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint

from eva_mm.errors import InputError
from eva_mm.zoo import converted, files
from eva_mm.zoo.keys import DETECTOR_KEYS

from ..helpers import ROOT, load_config, shrink_detector

MODELS = pytest.importorskip('mmdet.registry').MODELS


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the hub's verified cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HOME', str(tmp_path / 'home'))
    folder = tmp_path / 'hub'
    folder.mkdir()
    monkeypatch.setattr(converted, 'cached_file', lambda name, download: folder / name)
    monkeypatch.setattr(
        converted, 'content_digest', lambda path: Path(path).read_bytes().hex()[-64:]
    )
    return folder


def published_detector(folder, name='eva_coco_det', leaf='coco/eva_cascade', num_classes=80):
    """A tiny detector as detectron2 saves one; the model."""
    torch.manual_seed(0)
    model = MODELS.build(shrink_detector(load_config(leaf), num_classes=num_classes).model)
    weights = DETECTOR_KEYS.to_official(model.state_dict())
    torch.save(dict(model=weights, iteration=7), folder / name)
    return model


def test_a_detector_comes_under_our_names_with_its_classes(hub, tmp_path):
    model = published_detector(hub)
    checkpoint = CheckpointLoader.load_checkpoint('eva://eva_coco_det')
    state = model.state_dict()
    assert checkpoint['state_dict'].keys() == state.keys()
    assert all(torch.equal(checkpoint['state_dict'][k], v) for k, v in state.items())
    classes = checkpoint['meta']['dataset_meta']['classes']
    assert (classes[0], classes[-1], len(classes)) == ('person', 'toothbrush', 80)
    (file,) = (tmp_path / 'home' / 'eva_mm').glob('*.pth')
    other = MODELS.build(shrink_detector(load_config('coco/eva_cascade'), num_classes=80).model)
    load_checkpoint(other, 'eva://eva_coco_det', map_location='cpu')
    assert all(torch.equal(other.state_dict()[k], v) for k, v in state.items())
    # What was loaded is the model's own: the file may go.
    file.unlink()
    assert all(torch.equal(other.state_dict()[k], v) for k, v in state.items())


def test_lvis_classes_are_in_the_order_of_their_ids(hub):
    published_detector(hub, 'eva_lvis', 'lvis/eva_cascade', 1203)
    meta = CheckpointLoader.load_checkpoint('eva://eva_lvis')['meta']['dataset_meta']
    assert (meta['classes'][0], len(meta['classes'])) == ('aerosol_can', 1203)


def test_converted_once_per_content(hub, monkeypatch):
    published_detector(hub)
    calls = []
    original = converted.convert_file
    monkeypatch.setattr(
        converted, 'convert_file', lambda *args, **kw: calls.append(args) or original(*args, **kw)
    )
    first = converted.converted_file('eva://eva_coco_det')
    assert converted.converted_file('eva_coco_det') == first
    assert len(calls) == 1
    with open(hub / 'eva_coco_det', 'ab') as file:
        file.write(b'another content' * 8)
    monkeypatch.setattr(files, 'read_checkpoint', lambda *a, **k: torch.load(first))
    assert converted.converted_file('eva_coco_det') != first
    assert len(calls) == 2


def test_names_that_are_ours_already_take_no_second_copy(hub, tmp_path):
    torch.save(dict(model=dict(pos_embed=torch.zeros(1, 5, 4))), hub / 'eva_psz14')
    assert converted.converted_file('eva://eva_psz14') == hub / 'eva_psz14'
    assert not (tmp_path / 'home').exists()
    checkpoint = CheckpointLoader.load_checkpoint('eva://eva_psz14')
    assert checkpoint['state_dict']['pos_embed'].shape == (1, 5, 4)


def test_what_cannot_be_converted_leaves_nothing(hub, tmp_path):
    torch.save(dict(model={'layer1.0.conv1.weight': torch.zeros(1)}), hub / 'eva_lvis')
    with pytest.raises(InputError, match='layer1.0.conv1.weight'):
        converted.converted_file('eva_lvis')
    assert not [path for path in (tmp_path / 'home').rglob('*') if path.suffix in ('.pth', '.tmp')]


CONVERT = """
import sys, time
from pathlib import Path
from eva_mm.zoo import converted
folder = Path(sys.argv[1])
converted.cached_file = lambda name, download: folder / name
converted.content_digest = lambda path: 'a' * 64
original = converted.convert_file
def slow(*args, **kwargs):
    (folder / f'{time.time_ns()}.converted').touch()
    time.sleep(1)
    return original(*args, **kwargs)
converted.convert_file = slow
print(converted.converted_file('eva_coco_det'))
"""


def test_two_processes_at_once(tmp_path, monkeypatch):
    published_detector(tmp_path)
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'home'))
    command = [sys.executable, '-c', CONVERT, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert len(list(tmp_path.glob('*.converted'))) == 1
