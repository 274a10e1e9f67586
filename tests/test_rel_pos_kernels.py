"""Every way to compute attention with relative positions, against the scores written out."""

import copy
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks.explicit import explicit_attention, make_explicit
from eva_mm import rel_pos_kernels
from eva_mm.rel_pos_kernels import KERNELS, choose_kernel, rel_pos_attention, use_kernel
from eva_mm.vit import Block

from .helpers import ROOT, relative_error

DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
GRIDS = [(4, 4), (5, 3), (2, 9), (1, 6), (7, 1), (1, 1)]
SCALE = 12**-0.5


def random_inputs(grid, channels=12, dtype=torch.float32, device='cpu', batch=2, heads=3):
    torch.manual_seed(0)
    h, w = grid
    widths = (channels, channels, channels, h, w)
    tensors = [torch.randn(batch, heads, h * w, width) for width in widths]
    return [t.to(device, dtype).requires_grad_() for t in tensors]


def with_gradients(kernel, inputs):
    out = kernel(*inputs, SCALE)
    torch.manual_seed(1)
    weights = torch.randn(out.shape).to(out)
    return out, torch.autograd.grad((out * weights).sum(), inputs)


def differentiable(name, device):
    """FlexAttention has no backward pass on CPUs."""
    return name != 'flex' or device == 'cuda'


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('name', KERNELS)
def test_equals_the_explicit_form(name, grid, device):
    inputs = random_inputs(grid, device=device)
    if not differentiable(name, device):
        inputs = [t.detach() for t in inputs]
        out = KERNELS[name](*inputs, SCALE)
        assert relative_error(out, explicit_attention(*inputs, SCALE)) < 1e-5
        return
    out, gradients = with_gradients(KERNELS[name], inputs)
    expected, reference = with_gradients(explicit_attention, inputs)
    assert relative_error(out, expected) < 1e-5
    for own, ref in zip(gradients, reference):
        assert (own - ref).norm() <= 1e-5 * ref.norm() + 1e-4


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('name', KERNELS)
def test_bf16_is_as_near_to_the_exact_result_as_the_explicit_form(name, device):
    grid = (6, 5)
    inputs = random_inputs(grid, dtype=torch.bfloat16, device=device)
    exact, exact_gradients = with_gradients(
        explicit_attention, [t.detach().double().requires_grad_() for t in inputs]
    )
    expected, reference = with_gradients(explicit_attention, inputs)
    if not differentiable(name, device):
        out = KERNELS[name](*(t.detach() for t in inputs), SCALE)
        assert relative_error(out, exact) < 1.5 * relative_error(expected, exact)
        return
    out, gradients = with_gradients(KERNELS[name], inputs)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, exact) < 1.5 * relative_error(expected, exact)
    for own, ref, truth in zip(gradients, reference, exact_gradients):
        assert own.dtype == torch.bfloat16
        assert relative_error(own, truth) < 1.5 * relative_error(ref, truth)


@pytest.mark.parametrize('scores', [1, 7, 40, 200, 10**6])
def test_blocks_of_any_size_give_the_same(scores, monkeypatch):
    """From one query at a time, the last block a short one, to several heads at once."""
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 1)
    monkeypatch.setattr(rel_pos_kernels, 'SCORES_PER_THREAD', scores)
    inputs = random_inputs((3, 4), heads=5)
    out, gradients = with_gradients(rel_pos_kernels.blocked_attention, inputs)
    expected, reference = with_gradients(explicit_attention, inputs)
    assert relative_error(out, expected) < 1e-5
    for own, ref in zip(gradients, reference):
        assert relative_error(own, ref) < 1e-5


def test_blocks_differentiate_exactly():
    inputs = random_inputs((2, 3), channels=4, dtype=torch.float64, batch=1, heads=2)
    assert torch.autograd.gradcheck(rel_pos_kernels.blocked_attention, (*inputs, 0.5))


def test_blocks_are_computed_in_float_under_autocast():
    inputs = [t.detach() for t in random_inputs((4, 5))]
    expected = rel_pos_kernels.blocked_attention(*inputs, SCALE)
    with torch.autocast('cpu', torch.bfloat16):
        out = rel_pos_kernels.blocked_attention(*inputs, SCALE)
    assert torch.equal(out, expected)


def test_blocks_are_a_sound_operator():
    """Shapes and strides told to compilers are those that come out."""
    inputs = random_inputs((2, 3), channels=4)
    # Of a projection's output, as Attention hands them over.
    qkv = torch.randn(2, 6, 3, 3, 4, requires_grad=True).permute(2, 0, 3, 1, 4)
    torch.library.opcheck(torch.ops.eva_mm.rel_pos_attention, (*inputs, 0.5))
    torch.library.opcheck(torch.ops.eva_mm.rel_pos_attention, (*qkv.unbind(0), *inputs[3:], 0.5))


def test_blocks_hold_no_score_matrix(monkeypatch):
    """Not even of one head: what is allocated stays below N x N."""
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    monkeypatch.setattr(rel_pos_kernels, 'SCORES_PER_THREAD', 2**18)
    inputs = random_inputs((48, 48), channels=8, batch=1, heads=1)  # 21 MB of scores
    biggest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal biggest
            out = func(*args, **(kwargs or {}))
            for leaf in torch.utils._pytree.tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    biggest = max(biggest, leaf.untyped_storage().nbytes())
            return out

    with Watch():
        rel_pos_kernels._blocked_forward._init_fn(*(t.detach() for t in inputs), SCALE)
    assert biggest <= 4 * 2 * 2**18 < 4 * 48**4


def test_many_threads_share_a_bounded_block(monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 128)
    sizes = [
        (heads.stop - heads.start) * (queries.stop - queries.start) * 9216
        for heads, queries in rel_pos_kernels._blocks(16, 9216)
    ]
    assert max(sizes) <= rel_pos_kernels.MOST_SCORES < 9216**2
    assert len(sizes) == 16 * 11  # ten blocks of 910 queries and a short one


# ---------------------------------------------------------------------------------------- blocks


def block_and_baseline(grid, window, **kwargs):
    """A block with random tables, and the same one that holds its scores."""
    torch.manual_seed(0)
    side = (window, window) if window else grid
    block = Block(24, 2, 48, window_size=window, rel_pos_grid=side, layer_scale=0.5, **kwargs)
    for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
        torch.nn.init.normal_(table)
    return block, make_explicit(copy.deepcopy(block))


def step(block, grid, dtype, recomputed):
    torch.manual_seed(2)
    x = torch.randn(2, grid[0] * grid[1], 24, requires_grad=True)
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        if recomputed:
            out = torch.utils.checkpoint.checkpoint(block, x, grid, use_reentrant=False)
        else:
            out = block(x, grid)
    wanted = (x, *block.parameters())
    return out, torch.autograd.grad(out.float().square().sum(), wanted)


@pytest.mark.parametrize('recomputed', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('name', ['augmented', 'blocked'])
@pytest.mark.parametrize(
    ('grid', 'window'),
    [((6, 6), 0), ((5, 7), 0), ((1, 1), 0), ((8, 8), 4), ((5, 7), 4), ((1, 1), 4), ((3, 9), 2)],
)
def test_block_equals_its_explicit_form(grid, window, name, dtype, recomputed):
    block, baseline = block_and_baseline(grid, window)
    with use_kernel(name):
        out, gradients = step(block, grid, dtype, recomputed)
    expected, reference = step(baseline, grid, dtype, False)
    bound = 1e-5 if dtype == torch.float32 else 0.02
    assert relative_error(out, expected) < bound
    alone = grid == (1, 1) and not window  # one key: its softmax is 1, the rest is rounding
    for own, ref in zip(gradients, reference, strict=True):
        assert (own - ref).norm() <= (2 if dtype == torch.bfloat16 else 1) * bound * ref.norm() + (
            10 * bound if alone else 1e-4
        )


# ---------------------------------------------------------------------------------------- choice


def test_a_cpu_gets_blocks_by_default():
    assert choose_kernel(tuple(random_inputs((2, 2))), SCALE) == 'blocked'
    meta = tuple(t.detach().to('meta') for t in random_inputs((2, 2)))
    assert choose_kernel(meta, SCALE) == 'augmented'


def test_a_kernel_is_chosen_by_name(monkeypatch):
    used = []
    for name, kernel in KERNELS.items():
        spy = lambda *args, name=name, kernel=kernel: used.append(name) or kernel(*args)  # noqa: E731
        monkeypatch.setitem(KERNELS, name, spy)
    inputs = [t.detach() for t in random_inputs((2, 2))]
    for name in KERNELS:
        with use_kernel(name):
            rel_pos_attention(*inputs, SCALE)
    rel_pos_attention(*inputs, SCALE)
    assert used == [*KERNELS, 'blocked']


def test_the_fastest_is_timed_once_per_shape(monkeypatch, caplog):
    monkeypatch.setattr(rel_pos_kernels, '_fastest', {})
    timed = []
    seconds = dict(augmented=1.0, blocked=2.0)
    monkeypatch.setattr(
        rel_pos_kernels, '_time_of', lambda name, *args: timed.append(name) or seconds[name]
    )
    with use_kernel('fastest'), caplog.at_level(logging.INFO):
        first = [choose_kernel(tuple(random_inputs((2, 2))), SCALE) for _ in range(3)]
        with torch.no_grad():  # another choice: no backward pass
            choose_kernel(tuple(random_inputs((2, 2))), SCALE)
        choose_kernel(tuple(random_inputs((2, 3))), SCALE)
    assert first == ['augmented'] * 3
    assert timed == ['blocked', 'augmented'] * 3
    assert 'blocked 2000.00 ms, augmented 1000.00 ms' in caplog.text


def test_a_kernel_that_fails_is_never_the_fastest(monkeypatch, caplog):
    monkeypatch.setattr(rel_pos_kernels, '_fastest', {})

    def broken(*args):
        raise RuntimeError('no such device function')

    monkeypatch.setitem(KERNELS, 'augmented', broken)
    inputs = tuple(random_inputs((2, 2)))
    with use_kernel('fastest'):
        assert choose_kernel(inputs, SCALE) == 'blocked'
        out, _ = with_gradients(rel_pos_attention, inputs)
    assert relative_error(out, explicit_attention(*inputs, SCALE)) < 1e-5
    assert 'augmented does not serve here: no such device function' in caplog.text


def test_deterministic_runs_choose_without_a_clock(monkeypatch):
    monkeypatch.setattr(rel_pos_kernels, '_measured', lambda *args: pytest.fail('timed'))
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    with use_kernel('fastest'):
        assert choose_kernel(tuple(random_inputs((2, 2))), SCALE) == 'blocked'


@pytest.mark.parametrize(('side', 'expected'), [(80, 'augmented'), (96, 'timed')])
def test_a_gpu_times_what_no_flash_kernel_takes(monkeypatch, side, expected):
    """88 channels with 80 rows and columns (1280 px) are 248, with 96 (1536 px) 280.

    In evaluation: a training that is resumed must not meet another kernel.
    """
    monkeypatch.setattr(rel_pos_kernels, '_measured', lambda *args: 'timed')
    q, rows = (
        SimpleNamespace(
            shape=(1, 16, side**2, width), is_cuda=True, is_meta=False, device=torch.device('cuda')
        )
        for width in (88, side)
    )
    assert choose_kernel((q, q, q, rows, rows), SCALE) == 'augmented'
    with torch.no_grad():
        assert choose_kernel((q, q, q, rows, rows), SCALE) == expected
        with use_kernel('augmented'):
            assert choose_kernel((q, q, q, rows, rows), SCALE) == 'augmented'


def test_timing_inside_a_recomputed_block(monkeypatch, caplog):
    """Trials keep tensors for backward passes of their own, which are none of the block's."""
    monkeypatch.setattr(rel_pos_kernels, '_fastest', {})
    block, baseline = block_and_baseline((6, 6), 0)
    with use_kernel('fastest'):
        out, gradients = step(block, (6, 6), torch.float32, True)
    expected, reference = step(baseline, (6, 6), torch.float32, False)
    assert caplog.text == ''
    assert len(rel_pos_kernels._fastest) == 1
    assert relative_error(out, expected) < 1e-5
    for own, ref in zip(gradients, reference, strict=True):
        assert relative_error(own, ref) < 1e-4


def test_shapes_alone_are_not_timed(monkeypatch):
    """A dry run reckons with them, for a GPU."""
    monkeypatch.setattr(rel_pos_kernels, '_measured', lambda *args: pytest.fail('timed'))
    with use_kernel('fastest'), torch._subclasses.fake_tensor.FakeTensorMode() as mode:
        inputs = [mode.from_tensor(t.detach()) for t in random_inputs((2, 2))]
        assert choose_kernel(tuple(inputs), SCALE) == 'augmented'


def test_compiled_graphs_of_a_cpu_hold_its_kernel():
    """Though they are traced by fake tensors."""
    torch._dynamo.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    inputs = [t.detach() for t in random_inputs((2, 2))]
    compiled = torch.compile(rel_pos_attention, backend=keep, fullgraph=True)
    assert relative_error(compiled(*inputs, SCALE), explicit_attention(*inputs, SCALE)) < 1e-5
    (targets,) = graphs
    assert any('rel_pos_attention' in target for target in targets)
    assert not any('scaled_dot_product' in target for target in targets)


def test_a_kernel_with_another_result_is_never_the_fastest(monkeypatch, caplog):
    monkeypatch.setattr(rel_pos_kernels, '_fastest', {})
    monkeypatch.setitem(KERNELS, 'augmented', lambda q, *args: 1.01 * KERNELS['blocked'](q, *args))
    with use_kernel('fastest'):
        assert choose_kernel(tuple(random_inputs((2, 2))), SCALE) == 'blocked'
    assert 'augmented does not serve here: its result is another one' in caplog.text


def test_an_unknown_kernel_is_refused():
    with pytest.raises(ValueError, match="'flash', expected one of auto, fastest, augmented"):
        use_kernel('flash').__enter__()
    with pytest.raises(ValueError, match="variable EVA_MM_ATTENTION: attention kernel 'x'"):
        rel_pos_kernels._checked('x', 'environment variable EVA_MM_ATTENTION')


def test_a_run_tells_its_choice_and_mistakes_in_one_line(tmp_path):
    """By the tools, though the core knows nothing of their logs."""
    from eva_mm.engine import launch

    with pytest.raises(ValueError, match='EVA_MM_ATTENTION') as caught:
        rel_pos_kernels._checked('x', f'environment variable {rel_pos_kernels.ENV_NAME}')
    assert launch.plain_message(caught.value) == str(caught.value)
    assert launch.plain_message(ValueError('another one')) is None
    code = (
        'from eva_mm.engine import launch\n'
        'from eva_mm import rel_pos_kernels as r\n'
        'from tests.test_rel_pos_kernels import random_inputs\n'
        'launch.tell_of_the_core()\n'
        'launch.tell_of_the_core()\n'
        'r.rel_pos_attention(*random_inputs((2, 2)), 1.0)\n'
    )
    env = {**os.environ, rel_pos_kernels.ENV_NAME: 'fastest'}
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.stderr.count('INFO - attention of (2, 3, 4, 12)') == 1, done.stderr
