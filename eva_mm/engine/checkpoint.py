"""Checkpoints enter safely: only tensors and plain values are ever unpickled.

mmengine retries with full unpickling, which runs code from the file, when a safe load fails.
Importing this module replaces the loaders of :class:`mmengine.runner.CheckpointLoader`, so that
every way in (``load_from``, ``--resume``, ``Pretrained``, inferencers) reads with
``weights_only=True`` or stops.
"""

import hashlib
import os
from pickle import UnpicklingError
from typing import IO, Any
from urllib.parse import urlparse

import torch
from filelock import FileLock
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from eva_mm.errors import InputError
from eva_mm.zoo.converted import class_names, converted_file, placeholder_names
from eva_mm.zoo.keys import TABLES
from eva_mm.zoo.reading import ALLOWED_GLOBALS, read_checkpoint, with_state_dict
from eva_mm.zoo.table import SCHEME, published_models

from .strict_loading import remember_source


def _statistic(owner: Any, name: str) -> Any:
    """Stands in for `getattr`, by which mmengine's `HistoryBuffer` pickles its four statistics."""
    if owner is HistoryBuffer and name in ('mean', 'max', 'min', 'current'):
        return getattr(owner, name)
    raise UnpicklingError(f'attribute {name!r} of {owner!r} is asked for')


# Logged scalars in mmengine's own resume files. Our own list: the one of mmengine's continuation
# holds Python's `getattr`, by which a pickle may walk to any attribute, and mmengine 0.10 has none.
ALLOWED_GLOBALS += [HistoryBuffer, (_statistic, 'builtins.getattr')]


def safe_load(
    file: str | os.PathLike | IO[bytes], map_location: Any = None, mmap: bool = False
) -> dict:
    """Read a checkpoint without ever running code from it.

    Args:
        file: path of a ``torch.save`` file, of a ``.safetensors`` file or of a DeepSpeed folder;
            or the open file.
        map_location: as of ``torch.load``.
        mmap: leave tensors on disk until they are used; for paths.

    Returns:
        The dictionary in the file. Weights under ``model`` or ``module``, as the published files
        have them, are given under ``state_dict``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no checkpoint, is cut off, or holds more than weights and plain
            values.
    """
    name = getattr(file, 'name', 'the stream') if hasattr(file, 'read') else str(file)
    checkpoint = read_checkpoint(file, map_location, mmap)
    _drop_config_texts(checkpoint)
    checkpoint = with_state_dict(checkpoint)
    remember_source(checkpoint.get('state_dict', checkpoint), name)
    return checkpoint


def _drop_config_texts(checkpoint: dict) -> None:
    """Take out what mmengine would run as Python: a config as text.

    ``Runner.resume`` runs ``meta.config`` (mmcv 1.x); inferencers that are given weights alone run
    ``message_hub.runtime_info.cfg`` or ``meta.cfg``, and now ask for a config instead.
    """
    hub = checkpoint.get('message_hub')
    for place, key in (
        (checkpoint.get('meta'), 'config'),
        (checkpoint.get('meta'), 'cfg'),
        (hub.get('runtime_info') if isinstance(hub, dict) else None, 'cfg'),
    ):
        if isinstance(place, dict):
            place.pop(key, None)


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


def require_common_names(model: nn.Module, state_dict: dict, prefix: str = '') -> None:
    """Refuse weights that fit nothing, which mmengine would load with no more than a warning.

    Raises:
        ValueError: no parameter of the model is in ``state_dict``.
    """
    own = {prefix + name for name, _ in model.named_parameters()}
    if not own & state_dict.keys():
        raise InputError(
            f'none of the {len(own)} parameters of {type(model).__name__} is in the checkpoint, '
            f'which begins with {list(state_dict)[:3]}; expected names like {sorted(own)[:2]}'
        )


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> dict:
    """Loader of paths. A published file under its own name gets its class names."""
    checkpoint = safe_load(filename, map_location)
    name = os.path.basename(filename)
    if any(name == model.file for model in published_models().values()):
        _add_class_names(checkpoint, name)
    return checkpoint


@CheckpointLoader.register_scheme(prefixes=('http://', 'https://'), force=True)
def load_from_http(
    filename: str, map_location: Any = None, model_dir: str | None = None, progress: bool = True
) -> dict:
    """Loader of URLs; each machine keeps the file in torch.hub's folder, named by its address."""
    name = os.path.basename(urlparse(filename).path)
    digest = hashlib.sha256(filename.encode()).hexdigest()[:8]
    folder = model_dir or os.path.join(torch.hub.get_dir(), 'checkpoints')
    target = os.path.join(folder, f'{digest}-{name}')
    os.makedirs(folder, exist_ok=True)
    with FileLock(f'{target}.lock'):  # one process downloads, the others wait
        if not os.path.exists(target):
            torch.hub.download_url_to_file(filename, target, progress=progress)
    return safe_load(target, map_location)


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_eva(filename: str, map_location: Any = None) -> dict:
    """Loader of ``eva://NAME``: a published checkpoint under our names, with its class names.

    See :func:`eva_mm.zoo.converted.converted_file`; processes of a machine share one file, which
    is mapped and not read into each.
    """
    checkpoint = safe_load(converted_file(filename), map_location, mmap=True)
    _add_class_names(checkpoint, filename)
    return checkpoint


def _add_class_names(checkpoint: dict, name: str) -> None:
    """Put a published model's class names where mmengine looks, unless there are some."""
    weights = checkpoint.get('state_dict')
    if weights is None:
        return  # bare weights, beside which nothing else may lie
    if names := class_names(name) or placeholder_names(name, weights):
        checkpoint.setdefault('meta', {}).setdefault('dataset_meta', names)


# The remaining loaders (object stores, model zoos) read through these two functions.
mmengine_checkpoint.load_from_http = load_from_http
if hasattr(mmengine_checkpoint, '_safe_torch_load'):
    mmengine_checkpoint._safe_torch_load = lambda file, map_location=None, weights_only=None: (
        safe_load(file, map_location)
    )
