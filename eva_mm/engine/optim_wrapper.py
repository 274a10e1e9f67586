"""bf16 autocast where the device has it."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Trains under bf16 autocast on GPUs that compute in bf16, in fp32 everywhere else.

    bf16 has the range of fp32, so there is no loss scale. mmengine's ``AmpOptimWrapper`` does the
    same with ``dtype='bfloat16'`` but cannot be built without a GPU; this runs the same config on
    a CPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Context of the forward pass: autocast, and no gradient sync while accumulating."""
        enabled = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        with super().optim_context(model), torch.autocast('cuda', torch.bfloat16, enabled=enabled):
            yield
