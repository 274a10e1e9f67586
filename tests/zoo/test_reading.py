"""Every form in which weights come is read, and nothing in it is run."""

import argparse
import io
import os
import sys
import types

import numpy as np
import pytest
import torch
from mmengine.runner import load_checkpoint
from safetensors.torch import save_file
from torch import nn

from eva_mm.engine.checkpoint import safe_load
from eva_mm.errors import InputError
from eva_mm.zoo.files import pack, write_checkpoint
from eva_mm.zoo.reading import read_checkpoint


def test_what_published_files_hold_beside_weights(tmp_path, monkeypatch):
    """A command line, scores of NumPy, and settings of a package that is not installed here."""

    class CfgNode(dict):
        pass

    module = types.ModuleType('yacs.config')
    module.CfgNode, CfgNode.__module__, CfgNode.__qualname__ = CfgNode, 'yacs.config', 'CfgNode'
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    config = CfgNode(DATA=CfgNode(NUM_FRAMES=8))
    config.__dict__.update(__immutable__=False, __deprecated_keys__=set())
    args = argparse.Namespace(lr=1.0, data_set='IMNET', betas=[0.9, 0.98])
    file = tmp_path / 'ckpt.pth'
    content = dict(model=dict(w=torch.ones(2)), args=args, config=config, best=np.float64(61.5))
    torch.save(content, file)
    monkeypatch.delitem(sys.modules, 'yacs.config')
    read = read_checkpoint(file)
    assert torch.equal(read['model']['w'], torch.ones(2))
    assert read['args'].betas == [0.9, 0.98]
    assert read['config']['DATA']['NUM_FRAMES'] == 8
    assert read['best'] == 61.5


@pytest.mark.parametrize('mmap', [False, True])
@pytest.mark.parametrize('as_zip', [False, True])
def test_both_formats_of_torch(tmp_path, as_zip, mmap):
    file = tmp_path / 'weights.pth'
    weights = dict(w=torch.randn(3, 2).half())
    torch.save(weights, file, _use_new_zipfile_serialization=as_zip)
    read = read_checkpoint(str(file), map_location='cpu', mmap=mmap)
    assert torch.equal(read['w'], weights['w'])


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize('where', ['file', 'stream', 'deepspeed'])
def test_nothing_in_a_file_is_executed(tmp_path, where):
    target = tmp_path / 'owned'
    file = tmp_path / 'mp_rank_00_model_states.pt'
    torch.save(dict(module={}, args=Malicious(str(target))), file)
    source = dict(file=file, stream=io.BytesIO(file.read_bytes()), deepspeed=tmp_path)[where]
    with pytest.raises(InputError, match='Nothing in it was executed'):
        read_checkpoint(source)
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'', 'it is empty'),
        (b'\n<!DOCTYPE html><html>404</html>', 'it is a web page'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:1', 'Git LFS pointer'),
        (
            'dear reader, \u00e9t\u00e9\nline two'.encode(),
            "a text file, beginning with 'dear reader",
        ),
        (bytes(range(256)), 'Nothing in it was executed'),
    ],
)
@pytest.mark.parametrize('through', ['path', 'stream'])
def test_what_is_no_checkpoint_says_what_it_is(tmp_path, content, reason, through):
    file = tmp_path / 'weights.pth'
    file.write_bytes(content)
    with pytest.raises(InputError, match=reason) as error:
        read_checkpoint(file if through == 'path' else io.BytesIO(content))
    assert '\n' not in str(error.value)
    assert ('weights.pth' if through == 'path' else 'the stream') in str(error.value)


def test_a_cut_off_file_says_so(tmp_path):
    file = tmp_path / 'cut.pth'
    torch.save(dict(w=torch.zeros(1000)), file)
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(InputError, match='cut.pth cannot be read.*its end is missing'):
        read_checkpoint(file)


def test_other_things_than_a_dictionary(tmp_path):
    torch.save([torch.ones(1)], tmp_path / 'list.pth')
    with pytest.raises(InputError, match='list.pth holds a list, expected a dictionary'):
        read_checkpoint(tmp_path / 'list.pth')
    with pytest.raises(FileNotFoundError, match='gone.pth does not exist'):
        read_checkpoint(tmp_path / 'gone.pth')


# ------------------------------------------------------------------------------- safetensors


def safetensors_file(folder):
    weights = {'weight': torch.full((1, 1), 3.0), 'bias': torch.zeros(1, dtype=torch.float64)}
    file = folder / 'linear.safetensors'
    meta = dict(classes=('caf\u00e9', 'b'))
    write_checkpoint(pack(weights, 'safetensors', meta, kind='classifier'), file)
    return file, weights


@pytest.mark.parametrize('through', ['path', 'stream'])
def test_safetensors_keep_order_and_class_names(tmp_path, through):
    """The format sorts names, and its metadata is text alone."""
    file, weights = safetensors_file(tmp_path)
    read = read_checkpoint(file if through == 'path' else io.BytesIO(file.read_bytes()))
    assert list(read['state_dict']) == list(weights)
    assert read['state_dict']['bias'].dtype == torch.float64
    assert read['meta']['dataset_meta'] == {'classes': ['caf\u00e9', 'b']}
    assert read['meta']['kind'] == 'classifier'


def test_safetensors_of_others(tmp_path):
    file = tmp_path / 'timm.safetensors'
    save_file({'b': torch.ones(2), 'a': torch.zeros(1)}, file)
    assert read_checkpoint(file)['state_dict'].keys() == {'a', 'b'}


def test_safetensors_enter_by_every_way_of_mmengine(tmp_path):
    file, _ = safetensors_file(tmp_path)
    model = nn.Linear(1, 1)
    load_checkpoint(model, str(file), strict=True)
    assert float(model.weight) == 3
    assert safe_load(file, map_location='cpu')['state_dict'].keys() == {'weight', 'bias'}


def test_damaged_safetensors(tmp_path):
    file, _ = safetensors_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-3])
    for source in (file, io.BytesIO(file.read_bytes())):
        with pytest.raises(InputError, match='a safetensors file that is cut off or damaged'):
            read_checkpoint(source)


# --------------------------------------------------------------------------------- DeepSpeed


def deepspeed_folder(folder, *names, content=None):
    step = folder / 'global_step10'
    step.mkdir()
    (folder / 'latest').write_text('global_step10\n')
    for name in names:
        torch.save(content or dict(module=dict(w=torch.ones(2)), epoch=3), step / name)
    return step


@pytest.mark.parametrize('inner', [False, True])
def test_deepspeed_folders(tmp_path, inner):
    step = deepspeed_folder(
        tmp_path, 'mp_rank_00_model_states.pt', 'zero_pp_rank_0_mp_rank_00_optim_states.pt'
    )
    read = read_checkpoint(step if inner else tmp_path)
    assert torch.equal(read['module']['w'], torch.ones(2))
    assert safe_load(tmp_path)['state_dict'].keys() == {'w'}


@pytest.mark.parametrize(
    ('names', 'content', 'message'),
    [
        (['mp_rank_00_model_states.pt', 'mp_rank_01_model_states.pt'], None, '2 model-parallel'),
        (['zero_pp_rank_0_mp_rank_00_model_states.pt'], None, 'ZeRO stage 3.*zero_to_fp32.py'),
        (['mp_rank_00_model_states.pt'], dict(module=None, epoch=1), "under `module`.*'epoch'"),
        ([], None, 'is no DeepSpeed checkpoint'),
    ],
)
def test_split_weights_are_refused(tmp_path, names, content, message):
    deepspeed_folder(tmp_path, *names, content=content)
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path)


def test_a_tag_that_is_gone(tmp_path):
    deepspeed_folder(tmp_path).rmdir()
    with pytest.raises(FileNotFoundError, match='names global_step10, but folder'):
        read_checkpoint(tmp_path)
