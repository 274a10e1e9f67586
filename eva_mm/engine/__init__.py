"""What every task trains with: optimizer set-up, safe checkpoints, launching."""

from . import checkpoint
from .layer_decay import EVALayerDecay, param_group_table
from .optim_wrapper import BF16OptimWrapper

__all__ = ['BF16OptimWrapper', 'EVALayerDecay', 'checkpoint', 'param_group_table']
