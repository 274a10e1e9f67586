"""Memory counted from shapes, against closed forms and torch's own tracker."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType

from eva_mm.engine.memory import PeakMemory, activation_bytes, optimizer_state_bytes
from tests.toy_task import ToyBackbone


def test_peak_memory_counts_what_lives_at_one_time():
    with PeakMemory() as memory:
        first = torch.zeros(1000)
        second = first + 1
        view = second[:10]
        del first
        third = second * 2
        del second, third
        assert memory.current == 4000  # the view keeps its storage
        del view
    assert (memory.current, memory.peak) == (0, 8000)


def test_peak_memory_agrees_with_torch():
    def step(tracker):
        with tracker:
            model(torch.zeros(2, 3, 64, 64)).sum().backward()

    with FakeTensorMode():
        model = ToyBackbone(depth=6, width=64)
        own = PeakMemory(model.parameters())
        step(own)
        model.zero_grad()
        torchs = MemTracker()
        torchs.track_external(model)
        step(torchs)
    (snapshot,) = torchs.get_tracker_snapshot('peak').values()
    assert own.peak == snapshot['Total'] - snapshot[_MemRefType.PARAM]


@MODELS.register_module()
class ConvChain(nn.Module):
    """Six 1 x 1 convolutions of 64 channels: autograd keeps the input of each, and nothing else."""

    def __init__(self):
        super().__init__()
        widths = [3, *[64] * 6]
        self.backbone = nn.Sequential(
            *(nn.Conv2d(i, o, 1, bias=False) for i, o in zip(widths, widths[1:]))
        )


@pytest.mark.parametrize(('batch', 'size'), [(1, (64, 64)), (2, (64, 64)), (1, (256, 128))])
def test_activations_in_closed_form(batch, size):
    pixels = batch * size[0] * size[1]
    # The image and five inputs of convolutions are kept; at the peak, in the backward pass of the
    # last one, there are the gradients of its output and of its input.
    numbers = pixels * (3 + 5 * 64 + 2 * 64)
    bytes_ = activation_bytes(dict(type='ConvChain'), batch, size, torch.float32)
    assert bytes_ == pytest.approx(4 * numbers, rel=0.02)
    halved = activation_bytes(dict(type='ConvChain'), batch, size, torch.bfloat16)
    assert 0.5 < halved / bytes_ < 0.6


@pytest.mark.parametrize(
    ('optimizer', 'per_number', 'per_tensor'),
    [
        (dict(type='AdamW', lr=1), 8, 4),
        (dict(type='SGD', lr=1), 0, 0),
        (dict(type='SGD', lr=1, momentum=0.9), 4, 0),
    ],
)
def test_optimizer_state_is_exact(optimizer, per_number, per_tensor):
    with torch.device('meta'):
        model = nn.Sequential(nn.Linear(10, 20), nn.LayerNorm(20))
    wrapper = build_optim_wrapper(model, dict(optimizer=optimizer))
    numbers, tensors = 10 * 20 + 20 + 40, 4
    expected = per_number * numbers + per_tensor * tensors
    assert optimizer_state_bytes(wrapper.optimizer) == expected
