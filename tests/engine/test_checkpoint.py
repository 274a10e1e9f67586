"""Checkpoints: published forms are understood, and code in a file is never run."""

import os
import shutil

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from eva_mm.engine.checkpoint import safe_load


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: str):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize('as_zip', [True, False])
@pytest.mark.parametrize('through', ['safe_load', 'loader', 'model', 'stream', 'http', 'zoo'])
def test_a_malicious_pickle_is_never_executed(tmp_path, monkeypatch, through, as_zip):
    """On every way in: paths, streams of object stores, URLs, names of model zoos."""
    target, file = tmp_path / 'owned', str(tmp_path / 'evil.pth')
    content = dict(state_dict=dict(weight=torch.zeros(1)), meta=Malicious(str(target)))
    torch.save(content, file, _use_new_zipfile_serialization=as_zip)
    monkeypatch.setattr(
        torch.hub, 'download_url_to_file', lambda url, to, progress: shutil.copy(file, to)
    )
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(
        mmengine_checkpoint, 'get_torchvision_models', lambda: {'net': 'https://host/evil.pth?v=1'}
    )

    def from_stream():
        with open(file, 'rb') as stream:
            mmengine_checkpoint._safe_torch_load(stream)

    calls = dict(
        safe_load=lambda: safe_load(file),
        loader=lambda: CheckpointLoader.load_checkpoint(file),
        model=lambda: load_checkpoint(nn.Linear(1, 1), os.path.relpath(file)),
        stream=from_stream,
        http=lambda: load_checkpoint(nn.Linear(1, 1), 'https://host/evil.pth?v=1'),
        zoo=lambda: load_checkpoint(nn.Linear(1, 1), 'torchvision://net'),
    )
    with pytest.raises(ValueError, match='evil.pth.*Nothing in it was executed'):
        calls[through]()
    assert not target.exists()
    # The file does hold such a thing: plain unpickling runs it.
    torch.load(file, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize('key', ['state_dict', 'model', 'module', None])
def test_inner_keys_of_published_files(tmp_path, key):
    weights = dict(weight=torch.full((1, 1), 3.0), bias=torch.zeros(1))
    file = str(tmp_path / 'published.pth')
    torch.save({key: weights, 'iteration': 7} if key else weights, file)
    model = nn.Linear(1, 1)
    load_checkpoint(model, file, strict=True)
    assert float(model.weight) == 3


def test_own_resume_files_load(tmp_path):
    """mmengine keeps logged scalars in its checkpoints; they are plain values."""
    buffer = HistoryBuffer([1.0, 3.0], [1, 1])
    numpy_values = dict(loss=np.float32(0.5), steps=np.arange(3))
    file = tmp_path / 'iter_2.pth'
    torch.save(
        dict(state_dict={}, message_hub=dict(log_scalars={'train/loss': buffer}), **numpy_values),
        file,
    )
    loaded = safe_load(file)['message_hub']['log_scalars']['train/loss']
    assert loaded.mean() == 2
    assert safe_load(file)['steps'].tolist() == [0, 1, 2]


def test_getattr_is_not_open_to_files(tmp_path):
    class Walk:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    file = tmp_path / 'walk.pth'
    torch.save(dict(state_dict={}, x=Walk()), file)
    with pytest.raises(ValueError, match='walk.pth'):
        safe_load(file)


@pytest.mark.parametrize(
    'content', [b'<!DOCTYPE html><html>404</html>', b'', b'just some text\n' * 50]
)
def test_no_checkpoint_at_all(tmp_path, content):
    file = tmp_path / 'weights.pth'
    file.write_bytes(content)
    with pytest.raises(ValueError, match='weights.pth cannot be read as a checkpoint'):
        safe_load(file)


def test_truncated_file(tmp_path):
    file = tmp_path / 'cut.pth'
    torch.save(dict(state_dict=dict(weight=torch.zeros(1000))), file)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ValueError, match='cut.pth cannot be read as a checkpoint'):
        safe_load(file)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth does not exist'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'nowhere.pth'))


def test_unknown_published_name():
    with pytest.raises(ValueError, match="unknown checkpoint 'eva://eva_huge'.*eva_lvis"):
        CheckpointLoader.load_checkpoint('eva://eva_huge')


@pytest.mark.parametrize('place', ['meta.config', 'meta.cfg', 'message_hub.runtime_info.cfg'])
def test_config_texts_are_not_handed_on(tmp_path, place):
    """mmengine runs them as Python: on resuming, and in inferencers without a config."""
    *path, key = place.split('.')
    content = {key: 'import os'}
    for name in reversed(path):
        content = {name: content}
    file = tmp_path / 'iter_1.pth'
    torch.save(dict(state_dict={}, **content), file)
    loaded = safe_load(file)
    for name in path:
        loaded = loaded[name]
    assert loaded == {}
