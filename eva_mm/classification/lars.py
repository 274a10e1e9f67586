"""LARS as linear probes use it."""

from collections.abc import Callable, Iterable

import torch
from mmengine.registry import OPTIMIZERS
from torch.optim import Optimizer


@OPTIMIZERS.register_module()
class EVALARS(Optimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888) that leaves vectors to plain momentum.

    Source: github.com/baaivision/EVA, EVA-01/eva/optim_factory.py. timm's differs: it scales a
    vector like any other tensor, and without weight decay none at all unless told to.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: of the accumulated, already scaled gradient.
        weight_decay: added to the gradient of tensors of more than one dimension, before scaling.
        trust_coefficient: the step of such a tensor, momentum aside, is ``lr * trust_coefficient``
            times its norm.

    Raises:
        ValueError: a negative argument.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ):
        defaults = dict(
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
        )
        for name, value in defaults.items():
            if value < 0:
                raise ValueError(f'{name} must not be negative, got {value}')
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> torch.Tensor | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group['params']:
                if param.grad is not None:
                    self._update(param, group)
        return loss

    def _update(self, param: torch.Tensor, group: dict) -> None:
        update = param.grad
        if param.ndim > 1:
            update = update.add(param, alpha=group['weight_decay'])
            weight, gradient = param.norm(), update.norm()
            ratio = group['trust_coefficient'] * weight / gradient
            # A tensor of zeros, or one at rest, has no scale of its own.
            update = update * torch.where((weight > 0) & (gradient > 0), ratio, 1.0)
        state = self.state[param]
        if 'momentum_buffer' not in state:
            state['momentum_buffer'] = torch.zeros_like(param)
        buffer = state['momentum_buffer'].mul_(group['momentum']).add_(update)
        param.add_(buffer, alpha=-group['lr'])
