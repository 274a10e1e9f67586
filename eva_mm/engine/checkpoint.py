"""Checkpoints enter safely: only tensors and plain values are ever unpickled.

mmengine retries with full unpickling, which runs code from the file, when a safe load fails.
Importing this module replaces the loaders of :class:`mmengine.runner.CheckpointLoader`, so that
every way in (``load_from``, ``--resume``, ``Pretrained``, inferencers) reads with
``weights_only=True`` or stops.
"""

import os
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import torch
from mmengine.dist import barrier as dist_barrier
from mmengine.dist import get_rank, master_only
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from eva_mm.zoo.download import SCHEME, cached_file
from eva_mm.zoo.keys import TABLES

# Where published files keep their weights, in the order the authors' loaders look.
INNER_KEYS = ('state_dict', 'model', 'module')


def _statistic(owner: Any, name: str) -> Any:
    """Stands in for `getattr`, by which mmengine's `HistoryBuffer` pickles its four statistics."""
    if owner is HistoryBuffer and name in ('mean', 'max', 'min', 'current'):
        return getattr(owner, name)
    raise UnpicklingError(f'attribute {name!r} of {owner!r} is asked for')


def _safe_globals() -> list:
    """What mmengine's own resume files hold besides tensors."""
    allowed = getattr(mmengine_checkpoint, 'get_torch_safe_globals', list)()
    # Python's `getattr` is on mmengine's list; it would let a pickle walk to any attribute.
    return [*(item for item in allowed if item is not getattr), (_statistic, 'builtins.getattr')]


def safe_load(file: str | os.PathLike, map_location: Any = None) -> dict:
    """Read a checkpoint without ever running code from it.

    Args:
        file: path of a ``torch.save`` file.
        map_location: as of ``torch.load``.

    Returns:
        The dictionary in the file. Weights under ``model`` or ``module``, as the published files
        have them, are given under ``state_dict``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no checkpoint, is cut off, or holds more than weights and plain
            values.
    """
    file = os.path.expanduser(file)
    if not os.path.isfile(file):
        raise FileNotFoundError(f'checkpoint {file} does not exist')
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, BadZipFile, ValueError) as error:
        reason = str(error).split('\n', 1)[0]
        raise ValueError(
            f'{file} cannot be read as a checkpoint of weights and plain values, expected a '
            f'torch.save file of tensors: {reason} Nothing in it was executed.'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f'{file} holds a {type(checkpoint).__name__}, expected a dictionary of weights'
        )
    return with_state_dict(checkpoint)


def with_state_dict(checkpoint: dict) -> dict:
    """The checkpoint with its weights under ``state_dict``, where mmengine looks for them."""
    for key in INNER_KEYS:
        if isinstance(checkpoint.get(key), dict):
            rest = {k: v for k, v in checkpoint.items() if k != key}
            return {'state_dict': checkpoint[key], **rest}
    return checkpoint


def rename_published_keys(state_dict: dict, prefix: str, task: str) -> None:
    """Rename published parameter names to ours, in place; for models' ``_load_from_state_dict``.

    Args:
        state_dict: being loaded; names that are ours already stay.
        prefix: of the model's own names in it.
        task: a key of :data:`eva_mm.zoo.keys.TABLES`.
    """
    own = {k[len(prefix) :]: k for k in state_dict if k.startswith(prefix)}
    values = {name: state_dict.pop(key) for name, key in own.items()}
    state_dict.update({prefix + k: v for k, v in TABLES[task].to_mm(values).items()})


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> dict:
    """Loader of paths."""
    return safe_load(filename, map_location)


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(filename: str, map_location: Any = None) -> dict:
    """Loader of URLs; the file is kept in torch.hub's folder."""
    target = os.path.join(torch.hub.get_dir(), 'checkpoints', os.path.basename(filename))

    @master_only
    def download() -> None:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.exists(target):
            torch.hub.download_url_to_file(filename, target)

    download()
    dist_barrier()
    return safe_load(target, map_location)


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_eva(filename: str, map_location: Any = None) -> dict:
    """Loader of ``eva://NAME``: a published checkpoint, downloaded once by rank 0."""
    if get_rank() == 0:
        cached_file(filename, download=True)
    dist_barrier()
    return safe_load(cached_file(filename, download=True), map_location)


# The remaining loaders (object stores, model zoos) read through this function.
if hasattr(mmengine_checkpoint, '_safe_torch_load'):
    mmengine_checkpoint._safe_torch_load = lambda file, map_location=None, weights_only=None: (
        safe_load(file, map_location)
    )
