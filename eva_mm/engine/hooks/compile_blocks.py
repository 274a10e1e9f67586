"""Compilation of a run's blocks."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from eva_mm.engine.compilation import compile_blocks, transformer_blocks
from eva_mm.engine.sharding import is_sharded_run
from eva_mm.errors import UsageError


@HOOKS.register_module()
class CompileBlocksHook(Hook):
    """Compiles the transformer's blocks, and those of a frozen teacher.

    Args:
        **options: of ``torch.compile``, such as ``mode``, ``backend``, ``dynamic``.

    Raises:
        UsageError: the model has no blocks (when a loop begins).
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def before_train(self, runner: Runner) -> None:
        """Compile; the first passes of each shape take the time of it.

        Weights are there by now, in training a teacher with them, and shards are dealt.
        """
        if not transformer_blocks(runner.model):
            raise UsageError(f'nothing to compile: {type(runner.model).__name__} has no blocks')
        sharded = is_sharded_run(runner.cfg) and runner.world_size > 1
        number = compile_blocks(runner.model, self.options, forward_only=sharded)
        # Of a student that is taught, held outside of its parameters.
        teacher = getattr(getattr(runner.model, 'module', runner.model), 'teacher', None)
        if teacher is not None:
            number += compile_blocks(teacher, self.options)
        if number:
            runner.logger.info(f'torch.compile: {number} blocks, at the first passes')

    before_val = before_test = before_train
