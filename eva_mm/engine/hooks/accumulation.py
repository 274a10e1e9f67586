"""A schedule that counts updates, for gradient accumulation."""

from typing import Any

from mmengine.hooks import ParamSchedulerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class PerUpdateSchedulerHook(ParamSchedulerHook):
    """Steps iteration-based schedulers once per update of the weights.

    mmengine's hook steps them after every forward pass, so that the rate moves in
    mid-accumulation. With this one, milestones and warm-up stay written in updates and need no
    scaling, whatever the scheduler. Set by ``tools/train.py --accumulate``.

    Args:
        accumulation: forward passes per update.
    """

    def __init__(self, accumulation: int) -> None:
        self.accumulation = accumulation

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Step after the last forward pass of an update."""
        if self.every_n_train_iters(runner, self.accumulation):
            super().after_train_iter(runner, *args, **kwargs)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note what the checkpoint's iterations count, for who resumes it."""
        checkpoint['meta']['accumulate'] = self.accumulation
