"""``--compile``: graphs are few, results and names of parameters stay, every task can."""

import copy
import re
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from eva_mm.engine.compilation import compile_blocks, enable_compilation
from eva_mm.engine.hooks import CompileBlocksHook
from eva_mm.errors import UsageError
from eva_mm.vit import Block, EVAVisionTransformer, ViTSize

from ..helpers import relative_error

SIZE = ViTSize(depth=6, embed_dim=32, num_heads=2, mlp_dim=48, patch_size=16)


class Windowed(EVAVisionTransformer):
    """The detector's kinds of block: windows and global ones, relative positions."""

    def _make_block(self, index):
        window = 0 if index % 3 == 2 else 2
        return Block(
            **self._block_kwargs(index), window_size=window, rel_pos_grid=(window or 4,) * 2
        )


def build(**kwargs):
    torch.manual_seed(0)
    model = Windowed(SIZE, img_size=64, pooling=None, class_token=False, **kwargs).train()
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.2)
    return model


@pytest.fixture(autouse=True)
def no_graphs_of_others():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step(model, seed=1):
    torch.manual_seed(seed)
    image = torch.randn(3, 3, 64, 64)
    out = model.forward_intermediates(image, [-1])[0]
    params = [p for p in model.parameters() if p.requires_grad]
    return out, torch.autograd.grad(out.square().sum(), params)


def test_blocks_of_every_rate_share_their_graphs():
    """One for windows, one for global blocks, and one for the first block, which drops nothing."""
    counter = CompileCounter()
    model = build(drop_path_rate=0.5)
    assert compile_blocks(model, dict(backend=counter, fullgraph=True)) == 6
    step(model)
    step(model, seed=2)
    assert counter.frame_count == 3
    assert compile_blocks(model) == 0, 'twice'


def test_all_that_a_run_meets_is_compiled():
    """Frozen blocks, training and evaluation, two sizes: more graphs than PyTorch allows itself."""
    counter = CompileCounter()
    model = build(drop_path_rate=0.5)
    for block in model.blocks[:3]:
        block.requires_grad_(False)
    compile_blocks(model, dict(backend=counter, fullgraph=True))
    ran = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda *args: ran.append(torch.compiler.is_compiling()))
    for side in (64, 96):
        image = torch.randn(2, 3, side, side)
        model.train().forward_intermediates(image, [-1])[0].sum().backward()
        with torch.no_grad():
            model.eval().forward_intermediates(image, [-1])
    assert counter.frame_count > 8
    assert all(ran), 'a block ran eagerly'


def test_names_stay_and_copies_run_their_own_weights():
    """A moving average of the weights is such a copy."""
    model = build()
    names = list(model.state_dict())
    compile_blocks(model, dict(backend='eager'))
    assert list(model.state_dict()) == names
    before, _ = step(model)
    twin = copy.deepcopy(model)
    for param in model.parameters():
        param.data.zero_()
    assert torch.equal(step(twin)[0], before)


@pytest.mark.slow
@pytest.mark.parametrize('recomputed', [False, True])
def test_compiled_blocks_compute_the_same(recomputed):
    """Gradients too, with and without checkpointing, by the compiler that trains."""
    model = build()
    expected, reference = step(model)
    model.activation_checkpointing = recomputed
    compile_blocks(model)
    out, gradients = step(model)
    assert relative_error(out, expected) < 1e-5
    for own, ref in zip(gradients, reference, strict=True):
        assert (own - ref).norm() <= 1e-4 * ref.norm() + 1e-5


@pytest.mark.slow
def test_recomputed_blocks_drop_what_they_dropped():
    """Stochastic depth inside a compiled graph, run again in the backward pass."""
    model = build(drop_path_rate=0.8)
    compile_blocks(model)
    kept, expected = step(model)
    model.activation_checkpointing = True
    again, gradients = step(model)
    assert torch.equal(again, kept)
    for own, ref in zip(gradients, expected, strict=True):
        assert (own - ref).norm() <= 1e-4 * ref.norm() + 1e-5


# ------------------------------------------------------------------------------------- every task


def detection():
    pytest.importorskip('mmdet')
    from eva_mm.detection.backbone import EVAViTDet

    model = EVAViTDet(SIZE, img_size=64, window_size=2, drop_path_rate=0.2)
    return model, torch.randn(1, 3, 64, 64)


def segmentation():
    pytest.importorskip('mmseg')
    from eva_mm.segmentation.backbone import EVAViTAdapter

    model = EVAViTAdapter(
        SIZE, depth=4, img_size=64, drop_path_rate=0.2, relative_position_bias=True,
        deform_num_heads=2, stem_channels=8, norm_cfg=dict(type='BN'),
    )  # fmt: skip
    return model, torch.randn(2, 3, 64, 64)


def video():
    if find_spec('mmaction') is None:
        pytest.skip('needs mmaction2')
    import eva_mm.video  # noqa: F401  before mmaction
    from eva_mm.video.backbone import EVAVideoTransformer

    model = EVAVideoTransformer(SIZE, num_frames=2, img_size=32, drop_path_rate=0.2)
    return model, torch.randn(1, 3, 2, 32, 32)


def classification():
    model = EVAVisionTransformer(SIZE, img_size=64, num_classes=5, drop_path_rate=0.2)
    return model, torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize('task', [detection, segmentation, video, classification])
def test_no_block_breaks_its_graph(task):
    """Training and evaluation, bf16 autocast too; eagerly run graphs give the eager numbers."""
    model, inputs = task()
    expected = torch.utils._pytree.tree_leaves(model.eval()(inputs))
    counter = CompileCounterWithBackend('aot_eager')
    compile_blocks(model, dict(backend=counter, fullgraph=True))
    found = torch.utils._pytree.tree_leaves(model(inputs))
    for own, ref in zip(found, expected, strict=True):
        torch.testing.assert_close(own, ref, rtol=1e-4, atol=1e-5)
    model.train()
    with torch.autocast('cpu', torch.bfloat16):
        outputs = torch.utils._pytree.tree_leaves(model(inputs))
    sum(out.float().sum() for out in outputs).backward()
    assert 0 < counter.frame_count <= 6


# ------------------------------------------------------------------------------------ the options


def test_the_hook_is_added_once_beside_others():
    cfg = Config(dict(custom_hooks=[dict(type='EMAHook')]))
    enable_compilation(cfg)
    enable_compilation(cfg)
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'CompileBlocksHook']
    bare = Config({})
    enable_compilation(bare)
    assert [hook.type for hook in bare.custom_hooks] == ['CompileBlocksHook']


def test_mistakes_are_named():
    with pytest.raises(UsageError, match=re.escape('--compile compiles blocks, but')):
        enable_compilation(Config(dict(compile=True)))
    with pytest.raises(UsageError, match='nothing to compile: Linear has no blocks'):
        CompileBlocksHook().before_train(SimpleNamespace(model=torch.nn.Linear(1, 1)))
