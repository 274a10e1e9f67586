"""Checkpoints are written whole or not at all.

mmengine (0.10: ``mmengine/runner/checkpoint.py::save_checkpoint``) holds the whole file in memory
and then writes it in place, so that a kill or a full disk leaves a torso under the final name.
Importing this module puts :func:`save_checkpoint` in its place. It can go once mmengine writes to
a temporary name itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import torch
from mmengine import runner as mmengine_runner
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch.utils._pytree import tree_leaves

TEMPORARY = '.tmp'  # ending of a file that is being written
OLD = f'.old{TEMPORARY}'  # of a folder that makes room for another of its name

_save_elsewhere = mmengine_checkpoint.save_checkpoint


def write_whole(path: str, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file under a temporary name beside it, flush it to the disk, and rename it.

    After a kill at any moment, ``path`` is what it was before, or complete.

    Args:
        path: of the file; its folder is made.
        write: given the open file.

    Raises:
        Exception: what ``write`` raises; the temporary file is removed.
    """
    with whole_file(path) as file:
        write(file)


@contextmanager
def whole_file(path: str) -> Iterator[IO[bytes]]:
    """Open a file for :func:`write_whole`; it gets its name when the block ends without error."""
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    temporary = path + TEMPORARY
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.remove(temporary)
        raise
    flush_folder(folder)


def put_in_place(temporary: str, folder: str) -> None:
    """Give a complete folder its name; one of that name makes room first.

    Folders cannot be exchanged in one step: after a kill in between, :func:`put_back` has to be
    called before the name is looked for.
    """
    old = folder + OLD
    flush_folder(temporary)
    if os.path.exists(folder):
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
    try:
        os.replace(temporary, folder)
    except OSError:
        put_back(folder)
        raise
    flush_folder(os.path.dirname(os.path.abspath(folder)))
    shutil.rmtree(old, ignore_errors=True)


def put_back(folder: str) -> None:
    """Undo a :func:`put_in_place` that was killed before the name was given anew."""
    if os.path.isdir(folder + OLD) and not os.path.exists(folder):
        os.replace(folder + OLD, folder)


def put_all_back(parent: str) -> None:
    """Do :func:`put_back` for every folder in ``parent``, which may be absent."""
    if os.path.isdir(parent):
        for name in os.listdir(parent):
            if name.endswith(OLD):
                put_back(os.path.join(parent, name.removesuffix(OLD)))


def flush_folder(folder: str) -> None:
    """Make a rename in a folder survive a loss of power; file systems without it are left alone."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_checkpoint(
    checkpoint: dict,
    filename: str,
    file_client_args: dict | None = None,
    backend_args: dict | None = None,
) -> None:
    """Write a checkpoint to disk as a stream, whole or not at all; see :func:`write_whole`.

    Arguments are those of ``mmengine.runner.save_checkpoint``, which is called for files that are
    not on a local disk (object stores put whole objects anyway).

    Raises:
        OSError: the file could not be written; the message names file, size needed and free space.
            Files that were there before are untouched.
    """
    if file_client_args is not None or not _is_local(filename, backend_args):
        _save_elsewhere(checkpoint, filename, file_client_args, backend_args)
        return
    try:
        write_whole(filename, lambda file: torch.save(checkpoint, file))
    except (OSError, RuntimeError) as error:
        if not _is_failed_write(error):
            raise
        folder = os.path.dirname(os.path.abspath(filename))
        needed = _gib(checkpoint_bytes(checkpoint))
        free = _gib(shutil.disk_usage(folder).free) if os.path.isdir(folder) else 'no folder, 0'
        raise OSError(
            f'checkpoint {filename} could not be written: {_root_of(error)} It needs about '
            f'{needed}, {free} are free. Checkpoints written before are untouched.'
        ) from error


def checkpoint_bytes(checkpoint: dict) -> int:
    """Bytes of all tensors in a checkpoint, those that share storage counted once."""
    tensors = [leaf for leaf in tree_leaves(checkpoint) if isinstance(leaf, torch.Tensor)]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def _is_local(filename: str, backend_args: dict | None) -> bool:
    if '://' in filename:
        return False
    return isinstance(get_file_backend(filename, backend_args=backend_args), LocalBackend)


def _is_failed_write(error: BaseException) -> bool:
    """Also where torch's writer notices it first, and wraps or replaces the OSError."""
    if isinstance(error, OSError) or isinstance(error.__context__, OSError):
        return True
    return any(word in str(error) for word in ('PytorchStreamWriter', 'inline_container'))


def _root_of(error: BaseException) -> str:
    """The operating system's words, which torch's writer hides behind its own."""
    chain = error
    while chain is not None and not isinstance(chain, OSError):
        chain = chain.__context__
    text = (chain.strerror or str(chain)) if chain is not None else str(error).split('\n', 1)[0]
    return text.rstrip('.') + '.'


def _gib(size: int) -> str:
    return f'{size / 2**30:.2f} GiB' if size >= 2**27 else f'{size / 2**20:.2f} MiB'


def _install() -> None:
    for module in (mmengine_checkpoint, mmengine_runner, mmengine_runner.runner):
        module.save_checkpoint = save_checkpoint


_install()
