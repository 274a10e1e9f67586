"""The mean of checkpoints."""

import runpy
from pathlib import Path

import pytest
import torch
from mmengine.runner import load_checkpoint
from torch import nn

from eva_mm.errors import InputError
from eva_mm.zoo.averaging import average, average_files
from eva_mm.zoo.reading import read_checkpoint

TOOL = str(Path(__file__).resolve().parents[2] / 'tools' / 'average_checkpoints.py')


def states(count, dtype=torch.float32):
    return [
        {
            'weight': torch.randn(3, 2, dtype=torch.float64).to(dtype),
            'steps': torch.tensor(i),
            'bias': torch.randn(3, dtype=torch.float64).to(dtype),
        }
        for i in range(count)
    ]


def saved(folder, contents):
    paths = [folder / f'iter_{i}.pth' for i in range(len(contents))]
    for path, content in zip(paths, contents):
        torch.save(content, path)
    return paths


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_floats_are_averaged_and_counters_are_the_last(dtype):
    given = states(3, dtype)
    result = average(dict(zip('abc', given)))
    assert list(result) == ['weight', 'steps', 'bias']
    assert int(result['steps']) == 2
    for name in ('weight', 'bias'):
        expected = torch.stack([state[name].double() for state in given]).mean(0)
        assert result[name].dtype == dtype
        assert torch.equal(result[name], expected.to(dtype))


def test_sums_beyond_half_precision():
    """Three times 60,000 exceeds fp16, whose largest number is 65,504."""
    given = {name: {'w': torch.full((2,), 6e4, dtype=torch.float16)} for name in 'abc'}
    assert average(given)['w'].tolist() == [59_968.0 + 32] * 2
    assert average(given, torch.float32)['w'].dtype == torch.float32
    given = {name: {'w': torch.full((2,), 7e4)} for name in 'ab'}
    with pytest.raises(InputError, match='w holds 7e.04, beyond the range of float16'):
        average(given, torch.float16)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('bias'), r'b lacks 1 of the names in a.*: bias'),
        (lambda s: s.update(extra=torch.ones(1)), 'a lacks 1 of the names in b: extra'),
        (
            lambda s: s.update(bias=torch.ones(4)),
            r'(?s)differ in 1 shapes.*bias: \(3,\) and \(4,\)',
        ),
    ],
)
def test_models_that_differ_are_refused(change, message):
    first, second = states(2)
    change(second)
    with pytest.raises(InputError, match=message):
        average(dict(a=first, b=second))
    with pytest.raises(InputError, match='two files or more, got 1'):
        average(dict(a=first))


def test_the_result_loads_and_keeps_class_names(tmp_path):
    models = [nn.Linear(2, 3) for _ in range(2)]
    contents = [
        dict(state_dict=m.state_dict(), meta=dict(dataset_meta=dict(classes=(name,)), iter=5))
        for m, name in zip(models, 'xy')
    ]
    count = average_files(tmp_path / 'out.pth', saved(tmp_path, contents))
    assert count == 2
    model = nn.Linear(2, 3)
    load_checkpoint(model, str(tmp_path / 'out.pth'), strict=True)
    assert torch.allclose(model.weight, (models[0].weight + models[1].weight) / 2)
    assert read_checkpoint(tmp_path / 'out.pth')['meta'] == dict(dataset_meta=dict(classes=('y',)))


def test_published_layout_and_safetensors(tmp_path):
    paths = saved(tmp_path, [dict(model=state) for state in states(2)])
    average_files(tmp_path / 'out.pth', paths, dtype='bfloat16')
    result = torch.load(tmp_path / 'out.pth', weights_only=True)
    assert list(result) == ['model']
    assert result['model']['weight'].dtype == torch.bfloat16
    assert result['model']['steps'].dtype == torch.int64
    average_files(tmp_path / 'out.safetensors', paths)
    assert list(read_checkpoint(tmp_path / 'out.safetensors')['state_dict']) == list(states(1)[0])


def test_the_tool(tmp_path, capsys):
    main = runpy.run_path(TOOL)['main']
    paths = [str(path) for path in saved(tmp_path, states(2))]
    out = str(tmp_path / 'mean.pth')
    assert main([out, *paths]) == 0
    assert 'the mean of 2 files, 2 tensors' in capsys.readouterr().out
    for args, message in (
        ([out, *paths], 'mean.pth exists; --force replaces it'),
        ([out, '--force', paths[0], paths[0]], 'iter_0.pth is given twice'),
        ([out, '--force', paths[0], 'gone.pth'], 'gone.pth does not exist'),
        ([out, '--force', '--dtype', 'int8', *paths], '--dtype int8: expected one of float32, '),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(args)
        assert str(stopped.value.code).startswith('average_checkpoints.py: ')
        assert message in stopped.value.code
    assert torch.load(out, weights_only=True)['state_dict']['steps'] == 1
