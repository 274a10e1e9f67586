"""Batch normalisation over two processes on CPUs equals one process with both batches."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from eva_mm.segmentation.sync_norm import EVASyncBN
from tests.helpers import free_port

SHAPES = [(2, 4, 5, 6), (1, 4, 3, 7)]  # batches of different sizes


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) * 3 + 1 for shape in SHAPES]


def layer(kind):
    torch.manual_seed(1)
    norm = kind(4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


def step(norm, batch):
    batch = batch.clone().requires_grad_()
    output = norm(batch)
    (output**3).sum().backward()
    return dict(
        output=output.detach(),
        gradient=batch.grad,
        weight=norm.weight.grad,
        bias=norm.bias.grad,
        running_mean=norm.running_mean.clone(),
        running_var=norm.running_var.clone(),
        tracked=norm.num_batches_tracked.clone(),
    )


def _process(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    norm = layer(EVASyncBN)
    torch.save(step(norm, batches()[rank]), f'{folder}/{rank}.pth')
    norm.eval()
    torch.save(norm(batches()[rank]).detach(), f'{folder}/eval{rank}.pth')
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(_process, (free_port(), str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f'{rank}.pth') for rank in range(2)]
    first, second = batches()
    # One batch of all pixels, as batch normalisation sees them.
    whole = torch.cat([b.transpose(0, 1).flatten(1) for b in (first, second)], 1).T[..., None, None]
    expected = step(layer(nn.BatchNorm2d), whole)
    sizes = [batch.numel() // 4 for batch in (first, second)]
    for key in ('output', 'gradient'):
        parts = expected[key].flatten(1).split(sizes)
        for part, result in zip(parts, found):
            own = result[key].transpose(0, 1).flatten(1).T
            torch.testing.assert_close(own, part, rtol=1e-5, atol=1e-5)
    for key in ('weight', 'bias'):  # DDP sums them later
        torch.testing.assert_close(found[0][key] + found[1][key], expected[key])
    for key in ('running_mean', 'running_var', 'tracked'):
        for result in found:
            torch.testing.assert_close(result[key], expected[key])
    reference = layer(nn.BatchNorm2d)
    reference.load_state_dict(
        dict(reference.state_dict(), running_mean=expected['running_mean'],
             running_var=expected['running_var'])
    )  # fmt: skip
    for rank, batch in enumerate((first, second)):
        own = torch.load(tmp_path / f'eval{rank}.pth')
        torch.testing.assert_close(own, reference.eval()(batch))


def test_other_devices_take_pytorchs_layer(monkeypatch):
    """A tensor that says it is on a GPU, and PyTorch's kernel replaced by one that notes."""
    noted = []

    class Kernel:
        @staticmethod
        def apply(*args):
            noted.append(args)
            return args[0]

    monkeypatch.setattr('torch.nn.modules.batchnorm.sync_batch_norm', Kernel)
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda *_: 2)
    norm = layer(EVASyncBN)
    norm.eps, norm.momentum = 1e-3, 0.3
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = torch.empty(2, 4, 5, 6, device='cuda:0')
        assert norm(batch) is batch
    (found,) = noted
    expected = (batch, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    assert all(one is other for one, other in zip(found, expected))
    assert found[5:] == (1e-3, 0.3, torch.distributed.group.WORLD, 2)
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize('training', [True, False])
def test_one_process_is_plain(training):
    ours, theirs = layer(EVASyncBN).train(training), layer(nn.BatchNorm2d).train(training)
    batch = batches()[0]
    assert torch.equal(ours(batch), theirs(batch))
    assert torch.equal(ours.running_var, theirs.running_var)
    assert ours.num_batches_tracked == theirs.num_batches_tracked
