"""What every task trains with: optimizer set-up, exact data, safe checkpoints, launching."""

from . import checkpoint, exact_data, hooks, saving, sharding
from .layer_decay import EVALayerDecay, param_group_table
from .optim_wrapper import BF16OptimWrapper

__all__ = [
    'BF16OptimWrapper',
    'EVALayerDecay',
    'checkpoint',
    'exact_data',
    'hooks',
    'param_group_table',
    'saving',
    'sharding',
]
