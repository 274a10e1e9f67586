"""bf16 autocast where the device has it."""

from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


def gpu_has_bf16() -> bool:
    """Whether the GPU computes in bf16 itself; emulation, which torch counts too, is slow."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Trains under bf16 autocast on GPUs that compute in bf16, in fp32 everywhere else.

    bf16 has the range of fp32, so there is no loss scale. mmengine's ``AmpOptimWrapper`` does the
    same with ``dtype='bfloat16'`` but cannot be built without a GPU; this runs the same config on
    a CPU.

    Args:
        on_cpu: autocast on a CPU too, where bf16 is often emulated and slower (``--amp`` there).
        **kwargs: see :class:`mmengine.optim.OptimWrapper`.
    """

    def __init__(self, on_cpu: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.on_cpu = on_cpu

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Context of the forward pass: autocast, and no gradient sync while accumulating."""
        device = 'cuda' if torch.cuda.is_available() else 'cpu'
        enabled = self.on_cpu if device == 'cpu' else gpu_has_bf16()
        with super().optim_context(model), torch.autocast(device, torch.bfloat16, enabled=enabled):
            yield
