"""Hooks of every task, one file each."""

from .accumulation import PerUpdateSchedulerHook
from .checkpoint import SafeCheckpointHook
from .compile_blocks import CompileBlocksHook
from .iteration_seed import IterationSeedHook
from .non_finite import NonFiniteLossHook
from .unreadable_images import UnreadableImagesHook

__all__ = [
    'CompileBlocksHook',
    'IterationSeedHook',
    'NonFiniteLossHook',
    'PerUpdateSchedulerHook',
    'SafeCheckpointHook',
    'UnreadableImagesHook',
]
