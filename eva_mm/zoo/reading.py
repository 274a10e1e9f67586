"""Checkpoints enter safely: only tensors and plain values are ever unpickled.

Needs torch alone. The engine reads through :func:`read_checkpoint` as well, after adding the
classes of its own resume files to :data:`ALLOWED_GLOBALS`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from eva_mm.errors import InputError, MissingFileError, UnreadableFileError

from .sharded import STATE_FILE, is_sharded, read_weights
from .table import suggest_scheme

# Where published files keep their weights, in the order the authors' loaders look.
INNER_KEYS = ('state_dict', 'model', 'module')

ALLOWED_GLOBALS: list = [
    slice,
    set,
    # The authors' classification runs keep their command line, their video runs their settings
    # (EVA-01/eva/utils.py, EVA-01/video/utils/tools.py); both only hold values.
    argparse.Namespace,
    (OrderedDict, 'yacs.config.CfgNode'),
]
"""What a checkpoint may hold besides tensors, containers, numbers and text; as of
``torch.serialization.add_safe_globals``."""

_TEXT = frozenset(range(0x20, 0x100)) | set(b'\t\n\r\f')


def read_checkpoint(
    path: str | os.PathLike | IO[bytes], map_location: Any = None, mmap: bool = False
) -> dict:
    """Read a checkpoint without ever running code from it.

    Args:
        path: of a ``torch.save`` file, a ``.safetensors`` file, a DeepSpeed folder (the one
            with ``latest`` in it, or the one that it names) or a folder of ``--strategy fsdp``; or
            the open file.
        map_location: as of ``torch.load``.
        mmap: leave tensors on disk until they are used; for paths.

    Returns:
        The dictionary in the file. A safetensors file gives its tensors under ``state_dict`` and
        its metadata under ``meta``, with ``dataset_meta`` as a dictionary.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no checkpoint, is cut off, holds more than weights and plain
            values, or is one part of weights that are split over several files.
    """
    if hasattr(path, 'read'):
        return _read(path, getattr(path, 'name', 'the stream'), map_location, mmap)
    name = os.path.expanduser(os.fspath(path))
    if is_sharded(name):
        state = os.path.join(name, STATE_FILE)
        weights = read_weights(name, map_location)
        return {**_read(state, state, map_location, mmap), 'state_dict': weights}
    if os.path.isdir(name):
        return _read_deepspeed(Path(name), map_location, mmap)
    if not os.path.isfile(name):
        raise MissingFileError(f'checkpoint {name} does not exist{suggest_scheme(name)}')
    return _read(name, name, map_location, mmap)


def with_state_dict(checkpoint: dict) -> dict:
    """The checkpoint with its weights under ``state_dict``, where mmengine looks for them."""
    for key in INNER_KEYS:
        if isinstance(checkpoint.get(key), dict):
            rest = {k: v for k, v in checkpoint.items() if k != key}
            return {'state_dict': checkpoint[key], **rest}
    return checkpoint


# ------------------------------------------------------------------------------ single files


def _read(file: str | IO[bytes], name: str, map_location: Any, mmap: bool) -> dict:
    start, size = _start_of(file)
    if _is_safetensors(start):
        return _read_safetensors(file, name, map_location)
    if reason := _no_checkpoint(start, size):
        raise InputError(f'{name} cannot be read as a checkpoint: {reason}')
    if isinstance(file, str):
        mmap = mmap and zipfile.is_zipfile(file)  # torch's format before 1.6 has no mapping
    try:
        with torch.serialization.safe_globals(allowed_globals()):
            checkpoint = torch.load(
                file, map_location=map_location, weights_only=True, mmap=mmap or None
            )
    except Exception as error:  # a broken file raises nearly anything inside the unpickler
        reason = _cut_off(file, start) or _reason(error)
        raise InputError(
            f'{name} cannot be read as a checkpoint of weights and plain values, expected a '
            f'torch.save or safetensors file of tensors: {reason} Nothing in it was executed.'
        ) from error
    if not isinstance(checkpoint, dict):
        raise InputError(
            f'{name} holds a {type(checkpoint).__name__}, expected a dictionary of weights'
        )
    return checkpoint


def allowed_globals() -> list:
    """:data:`ALLOWED_GLOBALS`, and numbers and arrays of NumPy where that is installed."""
    return [*ALLOWED_GLOBALS, *_numpy_globals()]


def _numpy_globals() -> list:
    """What scores and statistics beside the weights are made of."""
    try:
        import numpy as np
    except ImportError:
        return []
    core = np._core if hasattr(np, '_core') else np.core
    dtypes = {type(np.dtype(kind)) for kind in (np.uint32, np.int64, np.float32, np.float64)}
    functions = [core.multiarray._reconstruct, core.multiarray.scalar]
    # NumPy 2 moved these; files keep the name of the version that wrote them.
    other = 'numpy.core.multiarray' if hasattr(np, '_core') else 'numpy._core.multiarray'
    moved = [(function, f'{other}.{function.__name__}') for function in functions]
    return [*functions, *moved, np.ndarray, np.dtype, *dtypes]


def _start_of(file: str | IO[bytes]) -> tuple[bytes, int]:
    """First bytes of a file and its size; nothing of a stream that cannot go back."""
    if isinstance(file, str):
        try:
            with open(file, 'rb') as stream:
                return stream.read(256), os.path.getsize(file)
        except OSError as error:
            raise UnreadableFileError(f'{file} cannot be read: {error.strerror}') from error
    if not file.seekable():
        return b'\x80', 1
    position = file.tell()
    start, size = file.read(256), file.seek(0, io.SEEK_END) - position
    file.seek(position)
    return start, size


def _no_checkpoint(start: bytes, size: int) -> str | None:
    """What a file is that is no checkpoint, told by its first bytes."""
    if size == 0:
        return 'it is empty'
    text = start.lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'it is a web page, as a download gives that needs a login or went to a wrong address'
    if text.startswith(b'version https://git-lfs'):
        return 'it is a Git LFS pointer in place of the file; `git lfs pull` fetches that'
    if all(byte in _TEXT for byte in start):
        line = start.decode('utf-8', 'replace').strip().split('\n', 1)[0]
        return f'it is a text file, beginning with {line[:40]!r}'
    return None


def _reason(error: Exception) -> str:
    """What torch found; without its advice to read the file unsafely."""
    text = str(error)
    if match := re.search(r'GLOBAL (\S+)', text):
        return f'it asks for the Python object {match[1]}, which no weights need.'
    if match := re.search(r'Unsupported \w+ \S+', text):
        return f'its content is no such file ({match[0]}).'
    return text.split('\n', 1)[0]


def _cut_off(file: str | IO[bytes], start: bytes) -> str | None:
    if start.startswith(b'PK') and isinstance(file, str) and not zipfile.is_zipfile(file):
        return 'its end is missing, as after an interrupted download.'
    return None


# ------------------------------------------------------------------------------- safetensors


def _is_safetensors(start: bytes) -> bool:
    """A safetensors file begins with the length of its JSON header, as 8 little-endian bytes."""
    return start[8:9] == b'{' and int.from_bytes(start[:8], 'little') < 2**27


def _read_safetensors(file: str | IO[bytes], name: str, map_location: Any) -> dict:
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load
    except ImportError as error:
        raise InputError(f'{name} is read by a package: pip install safetensors') from error
    try:
        if isinstance(file, str):
            with safe_open(file, framework='pt') as opened:
                tensors = {key: opened.get_tensor(key) for key in _names_in_order(opened)}
                metadata = opened.metadata()
        else:
            data = file.read()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], 'little')])
            metadata, loaded = header.pop('__metadata__', None), load(data)
            tensors = {key: loaded[key] for key in _ordered(loaded, metadata)}
    except (SafetensorError, ValueError) as error:
        raise InputError(
            f'{name} cannot be read as a checkpoint: a safetensors file that is cut off or '
            f'damaged ({str(error).splitlines()[0]})'
        ) from error
    if isinstance(map_location, (str, torch.device)):
        tensors = {key: tensor.to(map_location) for key, tensor in tensors.items()}
    return {'state_dict': tensors, 'meta': _meta(metadata or {}, name)}


def _names_in_order(opened: Any) -> list[str]:
    return _ordered(list(opened.keys()), opened.metadata())


def _ordered(names, metadata: Mapping[str, str] | None) -> list[str]:
    """Names as they stood in the model; the format itself sorts them by type and name."""
    order = {name: i for i, name in enumerate((metadata or {}).get('order', '').split('\n'))}
    return sorted(names, key=lambda name: order.get(name, len(order)))


def _meta(metadata: Mapping[str, str], name: str) -> dict:
    meta = {key: value for key, value in metadata.items() if key != 'order'}
    if 'dataset_meta' in meta:
        try:
            meta['dataset_meta'] = json.loads(meta['dataset_meta'])
        except ValueError as error:
            raise InputError(
                f'{name}: dataset_meta in its metadata is no JSON ({error})'
            ) from error
    return meta


# --------------------------------------------------------------------------------- DeepSpeed


def _read_deepspeed(folder: Path, map_location: Any, mmap: bool) -> dict:
    """Weights of a DeepSpeed folder: ``module`` of its one file of model states."""
    file = _model_states(folder)
    checkpoint = _read(str(file), str(file), map_location, mmap)
    if not isinstance(checkpoint.get('module'), dict):
        raise InputError(
            f'{file} holds no weights under `module`, but {sorted(map(str, checkpoint))[:8]}'
        )
    return checkpoint


def _model_states(folder: Path) -> Path:
    latest = folder / 'latest'
    tagged = folder / latest.read_text().strip() if latest.is_file() else folder
    if not tagged.is_dir():
        raise MissingFileError(f'{latest} names {tagged.name}, but folder {tagged} does not exist')
    whole = sorted(tagged.glob('mp_rank_*_model_states.pt'))
    if len(whole) == 1:
        return whole[0]
    if whole:
        raise InputError(
            f'{tagged} holds weights split over {len(whole)} model-parallel ranks '
            f'({whole[0].name} ...), expected one mp_rank_00_model_states.pt'
        )
    if any(tagged.glob('zero_pp_rank_*_model_states.pt')):
        raise InputError(
            f'{tagged} holds weights that ZeRO stage 3 partitioned; merge them by the '
            'zero_to_fp32.py that DeepSpeed wrote beside it, and give the file that it makes'
        )
    raise InputError(
        f'{folder} is no DeepSpeed checkpoint: neither `latest` nor mp_rank_00_model_states.pt is '
        'in it; expected a file of weights or a DeepSpeed folder'
    )
