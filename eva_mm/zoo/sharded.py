"""Reading of sharded checkpoints: folders that ``torch.distributed.checkpoint`` (DCP) wrote.

A run of ``--strategy fsdp`` saves folders ``iter_N``: DCP's own files hold the tensors, under
``model.NAME`` and ``optimizer.INDEX.KEY``; :data:`STATE_FILE` holds everything else. PyTorch's
reader unpickles its index without any check; here, only the few classes an index is made of are
allowed. Imports of DCP stand inside functions: they take most of a second.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from eva_mm.errors import InputError

STATE_FILE = 'state.pth'
MODEL = 'model.'  # prefixes of tensors
OPTIMIZER = 'optimizer.'
_INDEX = '.metadata'

# What PyTorch 2.4 to 2.11 write into the index. Dtypes are the only other names of `torch`.
_INDEX_GLOBALS = {
    'collections': ('OrderedDict',),
    'pathlib': ('Path', 'PosixPath', 'PurePosixPath', 'WindowsPath'),
    'torch': ('Size',),
    'torch.serialization': ('_get_layout',),
    'torch.distributed.checkpoint.filesystem': ('_StorageInfo',),
    'torch.distributed.checkpoint.metadata': (
        'BytesStorageMetadata',
        'ChunkStorageMetadata',
        'Metadata',
        'MetadataIndex',
        'StorageMeta',
        'TensorProperties',
        'TensorStorageMetadata',
        '_MEM_FORMAT_ENCODING',
    ),
}


class _IndexUnpickler(pickle.Unpickler):
    """Unpickles an index of DCP and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Give a class or function that an index may ask for."""
        if name in _INDEX_GLOBALS.get(module, ()):
            return super().find_class(module, name)
        if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f'it asks for the Python object {module}.{name}')


def is_sharded(path: str | os.PathLike) -> bool:
    """Whether a path is a folder of DCP."""
    return os.path.isfile(os.path.join(path, _INDEX))


def reason(error: BaseException) -> str:
    """What went wrong in the first process where something did; DCP tells whole tracebacks."""
    for rank, (inner, _) in getattr(error, 'failures', {}).items():
        return f'{type(inner).__name__} in process {rank}: {inner}'
    return f'{type(error).__name__}: {error}'


@contextmanager
def no_group_is_fine() -> Iterator[None]:
    """Silence DCP's warning that there is one process only."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'torch.distributed is disabled')
        yield


def read_index(folder: str | os.PathLike) -> Any:
    """Read which tensors a folder holds, and where.

    Returns:
        ``torch.distributed.checkpoint.Metadata``; ``state_dict_metadata`` maps the name of each
        tensor to its ``size`` and ``properties``.

    Raises:
        InputError: the index is broken, or holds more than tensors.
    """
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    path = os.path.join(folder, _INDEX)
    try:
        with open(path, 'rb') as file:
            index = _IndexUnpickler(file).load()
        values = index.state_dict_metadata.values()
    except Exception as error:  # a broken pickle raises nearly anything
        raise InputError(
            f'{path} cannot be read as the index of a sharded checkpoint: {error}. Nothing in it '
            f'was executed.'
        ) from error
    if not all(isinstance(value, TensorStorageMetadata) for value in values):
        raise InputError(f'{path} lists values that are no tensors, expected tensors alone')
    return index


def check_whole(folder: str | os.PathLike) -> None:
    """Make sure that no file of a folder is absent or cut off; their content is not read.

    Raises:
        InputError: one is, or the index is broken.
    """
    needed = {STATE_FILE: 0}
    for entry in (read_index(folder).storage_data or {}).values():
        end = entry.offset + entry.length
        needed[entry.relative_path] = max(end, needed.get(entry.relative_path, 0))
    for name, size in needed.items():
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            raise InputError(f'sharded checkpoint {folder} cannot be read: it has no file {name}')
        if os.path.getsize(path) < size:
            raise InputError(
                f'sharded checkpoint {folder} cannot be read: {name} is cut off, it has '
                f'{os.path.getsize(path)} bytes of {size}'
            )


def read_tensors(
    folder: str | os.PathLike, tensors: dict[str, Tensor], together: bool = False
) -> None:
    """Fill tensors, shards or whole ones, from a folder, in place.

    Args:
        folder: of DCP.
        tensors: name in the folder -> tensor of the same shape.
        together: all processes call this, each with its shards; else each is on its own.

    Raises:
        InputError: a file is absent or broken.
    """
    from torch.distributed import checkpoint as dcp

    index = read_index(folder)
    reader = dcp.FileSystemReader(folder)
    reader.read_metadata = lambda *args, **kwargs: index
    try:
        with no_group_is_fine():
            dcp.load(tensors, storage_reader=reader, no_dist=not together)
    except (Exception, dcp.CheckpointException) as error:
        raise InputError(f'sharded checkpoint {folder} cannot be read: {reason(error)}') from error


def read_weights(folder: str | os.PathLike, map_location: Any = None) -> dict[str, Tensor]:
    """Read the whole weights of a folder, without a process group.

    Args:
        folder: of DCP.
        map_location: a device for them, the CPU by default.

    Returns:
        Name -> tensor.

    Raises:
        InputError: the folder is broken, or holds no weights.
    """
    index = read_index(folder).state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in index.items()
        if name.startswith(MODEL)
    }
    if not tensors:
        raise InputError(
            f'{folder} is a sharded checkpoint, but not of this project: expected weights under '
            f'`{MODEL}`, found {list(index)[:3]}'
        )
    read_tensors(folder, tensors)
    if isinstance(map_location, (str, torch.device)):
        tensors = {name: tensor.to(map_location) for name, tensor in tensors.items()}
    return {name.removeprefix(MODEL): tensor for name, tensor in tensors.items()}
