"""``torch.compile`` of the transformer's blocks: ``--compile``.

Blocks rather than whole steps, as mmengine's ``compile`` key takes them: a step holds samplers,
losses and logging that break graphs, and its graph is as long as the model is deep, while blocks of
one shape share theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from eva_mm.errors import UsageError

HOOK = 'CompileBlocksHook'


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Parts that a model runs one after the other: of each list named ``*blocks``."""
    return [
        block
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList) and name.endswith('blocks')
        for block in part
    ]


def compile_blocks(
    model: nn.Module, options: Mapping[str, Any] | None = None, forward_only: bool = False
) -> int:
    """Compile those of :func:`transformer_blocks` that are not yet, in place.

    Names of parameters stay.

    Args:
        model: whose blocks they are.
        options: keyword arguments of ``torch.compile``.
        forward_only: leave hooks of the blocks out of it, as those of FSDP2 have to be. Copies of
            such a model would run the original's blocks.

    Returns:
        The number of blocks that were compiled.
    """
    import torch._dynamo  # takes a second

    # Blocks share one function, of which there are graphs for windows and whole maps, training and
    # evaluation, frozen blocks, and shapes; past the limit, 8 by default, they would run eagerly.
    # PyTorch 2.7 renamed it to `recompile_limit` and keeps this name.
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    number = 0
    for block in transformer_blocks(model):
        if block._compiled_call_impl is not None or 'forward' in vars(block):
            continue
        if forward_only:
            block.forward = torch.compile(block.forward, **(options or {}))
        else:
            block.compile(**(options or {}))
        number += 1
    return number


def enable_compilation(cfg: Config) -> None:
    """Add the hook that compiles the blocks to a config, in place.

    Raises:
        UsageError: the config compiles whole steps already.
    """
    if cfg.get('compile'):
        raise UsageError(
            f'--compile compiles blocks, but {cfg.filename} has compile={cfg.compile}, which '
            f'compiles whole steps: leave one out'
        )
    hooks = cfg.get('custom_hooks') or []
    if all(hook.get('type') != HOOK for hook in hooks):
        cfg.custom_hooks = [*hooks, ConfigDict(type=HOOK)]
