"""`eva://NAME` through mmengine's loaders: converted once, shared, with class names."""

import contextlib
import hashlib
import os
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_checkpoint

from eva_mm.errors import InputError
from eva_mm.zoo import converted, files
from eva_mm.zoo.keys import DETECTOR_KEYS
from eva_mm.zoo.table import REPOSITORY, find_model

from ..helpers import load_config, shrink_detector
from .hub_server import serve
from .test_download import finish, refuse_writing, start, wait_for

MODELS = pytest.importorskip('mmdet.registry').MODELS


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the hub's verified cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_HOME', str(tmp_path / 'home'))
    folder = tmp_path / 'hub'
    folder.mkdir()
    monkeypatch.setattr(converted, 'fetch', lambda name, copies=1: folder / name)
    monkeypatch.setattr(
        converted, 'content_digest', lambda p: hashlib.sha256(Path(p).read_bytes()).hexdigest()
    )
    return folder


@pytest.fixture
def conversions(monkeypatch):
    """The conversions that took place."""
    calls = []
    convert = converted._convert
    monkeypatch.setattr(converted, '_convert', lambda *args: calls.append(args) or convert(*args))
    return calls


def copies(tmp_path):
    return tmp_path / 'cache' / 'models--BAAI--EVA' / 'eva_mm'


def published_detector(
    folder, name='eva_coco_det', leaf='coco/eva_cascade', num_classes=80, bias=0.0
):
    """A tiny detector as detectron2 saves one; the model."""
    torch.manual_seed(0)
    model = MODELS.build(shrink_detector(load_config(leaf), num_classes=num_classes).model)
    torch.nn.init.constant_(model.rpn_head.rpn_reg.bias, bias)
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
    (file,) = copies(tmp_path).glob('*.pth')
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


def test_converted_once_per_content(hub, conversions, monkeypatch):
    published_detector(hub)
    first = converted.converted_file('eva://eva_coco_det')
    assert converted.converted_file('eva_coco_det') == first
    assert len(conversions) == 1
    published_detector(hub, bias=1.0)
    second = converted.converted_file('eva_coco_det')
    assert second != first
    assert len(conversions) == 2


@pytest.mark.parametrize('damage', ['truncated', 'zeroed', 'no record', 'bad record'])
def test_a_damaged_copy_is_made_anew(hub, conversions, damage):
    published_detector(hub)
    copy = converted.converted_file('eva_coco_det')
    content, record = copy.read_bytes(), copy.with_suffix('.json')
    if damage == 'truncated':
        copy.write_bytes(content[: len(content) // 2])
    elif damage == 'zeroed':
        copy.write_bytes(bytes(len(content)))
    elif damage == 'no record':
        record.unlink()
    else:
        record.write_text('{')
    assert converted.converted_file('eva_coco_det') == copy
    assert copy.read_bytes() == content  # equal bytes: what is written depends on no name or time
    assert len(conversions) == 2
    assert converted.converted_file('eva_coco_det') == copy
    assert len(conversions) == 2


def test_a_copy_that_was_copied_is_read_once(hub, conversions, monkeypatch):
    """Its time of change is another then, its content is not."""
    published_detector(hub)
    copy = converted.converted_file('eva_coco_det')
    os.utime(copy, (0, 0))
    readings = []
    sha256_of = converted.sha256_of
    monkeypatch.setattr(
        converted, 'sha256_of', lambda *args: readings.append(args) or sha256_of(*args)
    )
    for _ in range(2):
        assert converted.converted_file('eva_coco_det') == copy
    assert (len(readings), len(conversions)) == (1, 1)


def test_where_the_cache_cannot_be_written(hub, tmp_path, monkeypatch):
    model = published_detector(hub)
    refuse_writing(tmp_path / 'cache')
    copy = converted.converted_file('eva_coco_det')
    assert copy.parent == tmp_path / 'home' / 'eva_mm'
    refuse_writing(tmp_path / 'home')
    with pytest.warns(UserWarning, match=r'no converted copy of eva_coco_det.pth can be kept in'):
        checkpoint = CheckpointLoader.load_checkpoint('eva://eva_coco_det')
    assert checkpoint['meta']['dataset_meta']['classes'][0] == 'person'
    other = MODELS.build(shrink_detector(load_config('coco/eva_cascade'), num_classes=80).model)
    with pytest.warns(UserWarning, match='no converted copy'):
        load_checkpoint(other, 'eva://eva_coco_det', map_location='cpu')
    state = other.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_a_full_disk_leaves_the_published_file(hub, tmp_path, monkeypatch):
    published_detector(hub)

    def full(path, needed):
        raise files.WriteError(f'{path} needs 4 GB')

    monkeypatch.setattr(files, '_require_space', full)
    with pytest.warns(UserWarning, match='needs 4 GB'):
        assert converted.converted_file('eva_coco_det') == hub / 'eva_coco_det'
    assert not list(copies(tmp_path).glob('.*.pth*'))


def test_another_process_that_was_first(hub, tmp_path, monkeypatch):
    """Where locks do nothing."""
    published_detector(hub)
    convert, made = converted._convert, []

    def slow(published, model):
        monkeypatch.setattr(converted, '_convert', convert)
        made.append(converted.converted_file('eva_coco_det'))
        made.append(made[0].stat())
        return convert(published, model)

    monkeypatch.setattr(converted, 'lock', lambda *args: contextlib.nullcontext())
    monkeypatch.setattr(converted, '_convert', slow)
    copy = converted.converted_file('eva_coco_det')
    assert copy == made[0]
    assert copy.stat() == made[1]  # it was kept, others may have mapped it
    left = [path.name for path in copies(tmp_path).iterdir() if path.is_file()]
    assert sorted(left) == sorted([copy.name, copy.with_suffix('.json').name])


def test_a_published_file_that_cannot_be_read(hub):
    """That is no fault of where the copy goes."""
    (hub / 'eva_coco_det').write_bytes(b'PK cut off')
    with pytest.raises(InputError, match='eva_coco_det'):
        converted.converted_file('eva_coco_det')
    (hub / 'eva_coco_det').unlink()
    with pytest.raises(InputError):
        converted._make(hub / 'copy.pth', hub / 'eva_coco_det', find_model('eva_coco_det'))


def test_writers_of_one_file_at_once(tmp_path, monkeypatch):
    """As processes of equal number do, in containers that share a disk."""
    write, path, others = files._write, tmp_path / 'a.pth', [dict(state_dict={'b': torch.ones(1)})]

    def slow(content, file):
        write(content, file)
        if others:
            files.write_checkpoint(others.pop(), path)

    monkeypatch.setattr(files, '_write', slow)
    files.write_checkpoint(dict(state_dict={'a': torch.ones(1)}), path)
    assert list(torch.load(path, weights_only=True)['state_dict']) == ['a']
    assert list(tmp_path.iterdir()) == [path]


def test_classes_of_no_published_order_are_numbered(hub):
    """Else mmdet would draw the names of COCO."""
    published_detector(hub, 'eva_o365', num_classes=365)
    meta = CheckpointLoader.load_checkpoint('eva://eva_o365')['meta']['dataset_meta']
    assert meta['classes'][:2] == ('objects365 class 0', 'objects365 class 1')
    assert len(meta['classes']) == len(set(meta['classes'])) == 365
    published = torch.load(hub / 'eva_o365', weights_only=True)['model']
    assert converted.placeholder_names('eva_o365', published) == meta
    assert converted.placeholder_names('eva_coco_det', published) is None


def test_class_names_need_their_package(monkeypatch):
    def missing(error):
        def import_module(name):
            raise error

        converted.class_names.cache_clear()
        monkeypatch.setattr(converted.importlib, 'import_module', import_module)
        return converted.class_names('eva_coco_det')

    try:
        assert missing(ModuleNotFoundError('No module', name='mmdet')) is None
        for error in (ModuleNotFoundError('No module', name='mmcv'), ImportError('broken')):
            with pytest.raises(ImportError, match=str(error)):
                missing(error)
    finally:
        converted.class_names.cache_clear()


def test_names_that_are_ours_already_take_no_second_copy(hub, tmp_path):
    torch.save(dict(model=dict(pos_embed=torch.zeros(1, 5, 4))), hub / 'eva_psz14')
    assert converted.converted_file('eva://eva_psz14') == hub / 'eva_psz14'
    assert not (tmp_path / 'cache').exists()
    checkpoint = CheckpointLoader.load_checkpoint('eva://eva_psz14')
    assert checkpoint['state_dict']['pos_embed'].shape == (1, 5, 4)


def test_what_cannot_be_converted_leaves_nothing(hub, tmp_path):
    torch.save(dict(model={'layer1.0.conv1.weight': torch.zeros(1)}), hub / 'eva_lvis')
    with pytest.raises(InputError, match='layer1.0.conv1.weight'):
        converted.converted_file('eva_lvis')
    assert not [path for path in tmp_path.rglob('*') if path.suffix in ('.pth', '.tmp', '.json')]


CONVERT = """
import sys, time
from pathlib import Path
from eva_mm.zoo import converted
folder = Path(sys.argv[1])
converted.fetch = lambda name, copies: folder / name
converted.content_digest = lambda path: 'a' * 64
convert = converted._convert
def held(*args):
    (folder / f'{time.time_ns()}.converting').touch()
    while not (folder / 'go').exists():
        time.sleep(0.05)
    return convert(*args)
converted._convert = held
print(converted.converted_file('eva_o365'))
"""


def test_two_processes_at_once(tmp_path):
    published_detector(tmp_path, 'eva_o365')
    home = tmp_path / 'home'
    both = [start(['-c', CONVERT, tmp_path], 'http://127.0.0.1:1', home) for _ in range(2)]

    def converting():
        return len(list(tmp_path.glob('*.converting')))

    # One is held in its conversion until the other waits for it, or converts as well.
    wait_for(lambda: any('waiting' in p.told.read_text() for p in both) or converting() > 1, 100)
    (tmp_path / 'go').touch()
    said = [finish(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    told = sorted(err for _, err in said)
    assert told == ['', 'waiting for another process that converts eva_o365.pth\n']
    assert converting() == 1


INFER = """
import sys, warnings
import numpy as np, torch
from mmengine.config import Config
torch.set_num_threads(1)
config, result = sys.argv[1:]
from mmdet.apis import DetInferencer, init_detector
models = {
    'init_detector': init_detector(config, 'eva://eva_coco_det', device='cpu'),
    'DetInferencer': DetInferencer(config, 'eva://eva_coco_det', device='cpu').model,
}
torch.save(
    {
        name: dict(meta=dict(model.dataset_meta), weights=model.state_dict())
        for name, model in models.items()
    },
    result,
)
"""


@pytest.mark.slow
def test_a_published_detector_from_hub_to_inferencer(tmp_path):
    """All of it: download, verification, conversion, class names and weights in mmdet's models."""
    config = shrink_detector(load_config('coco/eva_cascade'), num_classes=80)
    config.dump(tmp_path / 'config.py')
    model = published_detector(tmp_path)
    content = (tmp_path / 'eva_coco_det').read_bytes()
    with serve(REPOSITORY, {'eva_coco_det.pth': content}) as hub:
        process = start(
            ['-c', INFER, tmp_path / 'config.py', tmp_path / 'result'], hub, tmp_path / 'home'
        )
        out, err = finish(process)
        assert process.returncode == 0, err
        assert len(hub.contents()) == 1
    state = model.state_dict()
    found = torch.load(tmp_path / 'result', weights_only=False)
    for name in ('init_detector', 'DetInferencer'):
        classes = found[name]['meta']['classes']
        assert (classes[0], classes[-1], len(classes)) == ('person', 'toothbrush', 80)
        weights = found[name]['weights']
        assert weights.keys() == state.keys()
        assert all(torch.equal(weights[key], value) for key, value in state.items()), name


def test_a_published_file_given_by_its_path_has_its_class_names(tmp_path):
    """As one downloads it for a machine without a network."""
    published_detector(tmp_path, 'eva_lvis.pth', 'lvis/eva_cascade', 1203)
    path = str(tmp_path / 'eva_lvis.pth')
    meta = CheckpointLoader.load_checkpoint(path)['meta']['dataset_meta']
    assert (meta['classes'][0], len(meta['classes'])) == ('aerosol_can', 1203)
    os.rename(path, tmp_path / 'mine.pth')
    assert 'meta' not in CheckpointLoader.load_checkpoint(str(tmp_path / 'mine.pth'))
