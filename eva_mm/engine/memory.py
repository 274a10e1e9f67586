"""Memory of a training step, from shapes alone: no weights, no GPU."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping

import torch
from mmengine.registry import MODELS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors made under it, freed ones taken off, and keeps the peak.

    Agrees to the byte with `torch.distributed._tools.mem_tracker.MemTracker`, which takes ten times
    as long to tell modules apart.

    Args:
        before (Iterable[Tensor]): Tensors made before, such as parameters: views of them are free.

    Attributes:
        current (int): Bytes alive.
        peak (int): Most bytes alive at one time.
    """

    def __init__(self, before: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in before}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.current += storage.nbytes()
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.current -= self._sizes.pop(key)


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()


def optimizer_state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of state that an optimizer keeps after a step, found by a step on meta tensors."""
    for group in optimizer.param_groups:
        for param in group['params']:
            param.grad = torch.empty_like(param)
    optimizer.step()
    optimizer.zero_grad()
    states = tree_leaves([list(state.values()) for state in optimizer.state.values()])
    return sum(nbytes(state) for state in states if isinstance(state, Tensor))


def activation_bytes(
    model_cfg: Mapping,
    batch: int,
    size: tuple[int, int],
    dtype: torch.dtype,
    frames: int | None = None,
) -> int:
    """Peak of activations and temporary tensors in a forward and backward pass of the features.

    Run on fake tensors: shapes only. Gradients of parameters are dropped as soon as they are
    complete, so that they are not counted.

    Args:
        model_cfg (Mapping): With `extract_feat` (any OpenMMLab model) or a `backbone`.
        batch (int): Images per GPU.
        size (tuple[int, int]): Height and width in pixels.
        dtype (torch.dtype): Of autocast; float32 for none.
        frames (int, optional): Of a clip, for a backbone that takes clips.

    Returns:
        int: Bytes.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = MODELS.build(copy.deepcopy(model_cfg)).train()
        features = getattr(model, 'extract_feat', None)
        if frames or features is None:  # of clips, hosts' methods want views besides
            features = model.backbone
        for param in model.parameters():
            if param.requires_grad:
                param.register_post_accumulate_grad_hook(_drop_gradient)
        images = torch.zeros(batch, 3, *((frames,) if frames else ()), *size)
        with PeakMemory([*model.parameters(), *model.buffers()]) as memory:
            with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
                maps = [leaf for leaf in tree_leaves(features(images)) if isinstance(leaf, Tensor)]
            sum(feature.sum() for feature in maps).backward()
    return memory.peak


def _drop_gradient(param: Tensor) -> None:
    param.grad = None
