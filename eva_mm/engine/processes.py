"""The processes of a launcher: how many there are, forming and leaving their group."""

from __future__ import annotations

import gc
import itertools
import os
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object, broadcast_object_list, get_rank, init_dist
from mmengine.utils.dl_utils import set_multi_processing

from eva_mm.errors import InputError, UsageError

# What each launcher tells a process: its rank, and how many there are.
_ENVIRONMENT = {
    'pytorch': ('RANK', 'WORLD_SIZE'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'),
}

_LAG = 5.0  # seconds until a new file is seen through any shared file system
# The others wait for the first as long as it works; a launcher ends them if it dies.
_PATIENCE = timedelta(days=7)
_calls = itertools.count()


def told_rank(launcher: str) -> int:
    """Rank of this process as the launcher tells it, before or without a process group."""
    rank, _ = _ENVIRONMENT.get(launcher, ('', ''))
    return int(os.environ.get(rank, 0))


def told_world_size(launcher: str) -> int:
    """Number of processes as the launcher tells it, before or without a process group."""
    _, size = _ENVIRONMENT.get(launcher, ('', ''))
    return int(os.environ.get(size, 1))


def join_processes(cfg: Config) -> None:
    """Form the process group of a launcher, if there is one; the Runner takes it as it is.

    Runners other than mmengine's plain one and ours form theirs by themselves.

    Raises:
        UsageError: the launcher needs GPUs, and there are none.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none' or torch.distributed.is_initialized():
        return
    if get_device() == 'cpu' and launcher != 'pytorch':
        raise UsageError(
            f'--launcher {launcher} needs GPUs; on CPUs use torchrun with --launcher pytorch'
        )
    if cfg.get('runner_type', 'Runner') not in ('Runner', 'ShardedRunner'):
        return
    environment = cfg.get('env_cfg') or {}
    # As the Runner does before it forms a group, which would set a start method of its own.
    set_multi_processing(**(environment.get('mp_cfg') or {}), distributed=True)
    if get_device() == 'cpu':
        # mmengine would select a CUDA device first.
        torch.distributed.init_process_group('gloo')
    else:
        init_dist(launcher, **(environment.get('dist_cfg') or {}))


def on_first_process(work: Callable[[], Any]) -> Any:
    """Let the first process alone do something, and tell all of them its result.

    All of them call this, equally often. The others wait outside of collectives, so that the work
    may take longer than the group's timeout (10 minutes with NCCL).

    Args:
        work: Returns something that can be pickled.

    Raises:
        InputError: In every process, when it was raised in the first.
    """
    told: list[Any] = [None, None]
    if get_rank() == 0:
        try:
            told = [work(), None]
        except InputError as error:
            told = [None, error]
        except Exception as error:  # the others wait to be told
            _wait_for_first()
            broadcast_object_list([None, InputError(f'{type(error).__name__}: {error}')])
            raise
    _wait_for_first()
    broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]


def _wait_for_first() -> None:
    """Return in the first process at once, in the others when it has come here."""
    if not torch.distributed.is_initialized():
        return
    key = f'eva_mm/first_process/{next(_calls)}'
    store = torch.distributed.distributed_c10d._get_default_store()
    if get_rank() == 0:
        store.set(key, '1')
    else:
        store.wait([key], _PATIENCE)


def check_shared(folder: str, what: str) -> None:
    """Make sure that all processes mean the same folder; all of them call this.

    Args:
        folder: the first process can write to it.
        what: is in it, for the error.

    Raises:
        InputError: in every process, when some do not see what the first writes.
    """
    # A name of its own: a folder of the same name may well lie on each machine's own disk.
    mark = os.path.join(folder, on_first_process(lambda: _make_mark(folder)))
    seen = all_gather_object(_appears(mark))
    on_first_process(lambda: os.remove(mark))
    if not all(seen):
        blind = ', '.join(str(rank) for rank, there in enumerate(seen) if not there)
        raise InputError(
            f'{what} needs a folder that all machines share, but in {folder} processes {blind} do '
            f'not see what process 0 writes'
        )


def _make_mark(folder: str) -> str:
    handle, path = tempfile.mkstemp(prefix='.shared_', dir=folder)
    os.close(handle)
    return os.path.basename(path)


def _appears(path: str) -> bool:
    """Whether a file is there, or comes within :data:`_LAG`."""
    until = time.monotonic() + _LAG
    while not os.path.exists(path):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def leave_process_group() -> None:
    """End the process group, which mmengine leaves open; call it when the Runner is given up.

    A group that lives on until the interpreter ends may abort in gloo's threads, and then a
    finished run counts as failed.
    """
    if torch.distributed.is_initialized():
        gc.collect()  # the Runner is full of cycles, and its model holds on to the group
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
