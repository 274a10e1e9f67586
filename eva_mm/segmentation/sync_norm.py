"""Batch normalisation over all processes, on CPUs too."""

from __future__ import annotations

import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


@MODELS.register_module()
class EVASyncBN(_BatchNorm):
    """``torch.nn.SyncBatchNorm`` that several processes on CPUs may train with as well.

    PyTorch's layer and its DistributedDataParallel refuse that; here sums and sums of squares go
    through a differentiable all-reduce. On other devices it does what PyTorch's layer does, and in
    one process or in evaluation it is plain batch normalisation.
    """

    process_group = None  # all processes, for PyTorch's forward
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def _check_input_dim(self, input: Tensor) -> None:
        nn.SyncBatchNorm._check_input_dim(self, input)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        grouped = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not (grouped and self.training):
            return super().forward(input)
        if input.device.type != 'cpu':
            return nn.SyncBatchNorm.forward(self, input)
        return self._over_processes(input)

    def _over_processes(self, input: Tensor) -> Tensor:
        axes = [0, *range(2, input.ndim)]
        count = torch.full((1,), input.numel() / input.shape[1], dtype=torch.float64)
        values = input.double()
        parts = torch.cat((count, values.sum(axes), values.square().sum(axes)))
        total, sums, squares = all_reduce(parts).split((1, input.shape[1], input.shape[1]))
        mean = sums / total
        variance = squares / total - mean.square()
        with torch.no_grad():
            unbiased = variance * (total / (total - 1))
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        shape = (1, -1, *(1 for _ in axes[1:]))
        scale = (variance + self.eps).rsqrt().reshape(shape)
        normal = ((values - mean.reshape(shape)) * scale).to(input.dtype)
        return normal * self.weight.reshape(shape) + self.bias.reshape(shape)
