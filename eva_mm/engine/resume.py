"""Which checkpoint a run goes on from, and what of it must be known before the Runner is built."""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from eva_mm.errors import InputError

from .checkpoint import safe_load

# What a checkpoint of a run holds beside its weights; weights alone cannot be resumed.
_STATE = ('meta', 'message_hub', 'optimizer')


def read_state(path: str) -> dict:
    """Read the head of a run's checkpoint; its tensors stay on disk.

    Returns:
        ``meta``: ``iter``, ``epoch``, ``seed`` and what hooks noted.

    Raises:
        FileNotFoundError: no such file.
        InputError: it is cut off, or holds no state of a run.
    """
    if '://' in path:  # another storage, whose loader gives the whole file
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    else:
        checkpoint = safe_load(path, map_location='cpu', mmap=True)
    absent = [key for key in _STATE if key not in checkpoint]
    if absent or 'iter' not in checkpoint['meta']:
        raise InputError(
            f'{path} holds no state of a run ({", ".join(absent) or "meta.iter"} absent): weights '
            f'alone are started from by load_from, not resumed'
        )
    return checkpoint['meta']


def saved_checkpoints(cfg: Config) -> list[str]:
    """Checkpoints of a run, the furthest first: by the number in the name, not by time.

    They lie where its ``CheckpointHook`` saves them: in the work dir or in ``out_dir``, which may
    be on another storage. The file that ``last_checkpoint`` names is among them even when it has
    another name or is gone.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    before, _, after = (hook.get('filename_tmpl') or '@_{}.pth').partition('{}')
    before = re.escape(before).replace('@', '(?:iter|epoch)')
    pattern = re.compile(rf'{before}(\d+){re.escape(after)}')
    numbers = {}
    for path in _files_beside_checkpoints(cfg, hook):
        if match := pattern.fullmatch(posixpath.basename(path)):
            numbers[path] = int(match[1])
    pointer = Path(cfg.work_dir, 'last_checkpoint')
    last = pointer.read_text().strip() if pointer.is_file() else ''
    if last and os.path.basename(last) not in map(os.path.basename, numbers):
        match = pattern.fullmatch(os.path.basename(last))
        numbers[last] = int(match[1]) if match else -1
    return sorted(numbers, key=numbers.get, reverse=True)


def _files_beside_checkpoints(cfg: Config, hook: ConfigDict) -> list[str]:
    """Paths of the files in the folder that CheckpointHook writes to."""
    folder, backend_args = str(cfg.work_dir), hook.get('backend_args')
    backend = get_file_backend(hook.get('out_dir') or folder, backend_args=backend_args)
    if hook.get('out_dir') and str(hook.out_dir) != folder:
        folder = backend.join_path(hook.out_dir, os.path.basename(folder.rstrip(os.sep)))
    if not backend.isdir(folder):
        return []
    names = backend.list_dir_or_file(folder, list_dir=False, recursive=False)
    return [backend.join_path(folder, name) for name in names]


def newest_readable(cfg: Config) -> tuple[str, dict] | None:
    """The furthest checkpoint of a work dir that can be read, with its ``meta``.

    Each one that cannot be is named in a warning.

    Returns:
        None when there is none at all.

    Raises:
        InputError: there are some, and none can be read.
    """
    broken = []
    for path in saved_checkpoints(cfg):
        try:
            return path, read_state(path)
        except InputError as error:
            broken.append(str(error))
            print_log(f'passed over: {error}', logger='current', level=logging.WARNING)
    if broken:
        raise InputError(f'no checkpoint in {cfg.work_dir} can be resumed: ' + '; '.join(broken))
    return None


def fit_to_checkpoint(cfg: Config, path: str, meta: dict[str, Any]) -> None:
    """Give the config the seed of a checkpoint, before samplers are built by it.

    mmengine takes the seed over when it loads the checkpoint; the sampler is there by then, with a
    seed drawn anew.

    Raises:
        InputError: the config asks for another seed, or counts iterations otherwise.
    """
    randomness = cfg.setdefault('randomness', ConfigDict(seed=None))
    seed = meta.get('seed')
    if seed is not None and randomness.get('seed') not in (None, seed):
        raise InputError(
            f'{path} was trained with seed {seed}, but randomness.seed is {randomness.seed}: '
            f'leave it out, or set it to {seed}'
        )
    if seed is not None:
        randomness.seed = seed
    before, now = meta.get('accumulate', 1), cfg.get('accumulate', 1)
    if before != now:
        raise InputError(
            f'{path} was trained with --accumulate {before}, so that its iterations are not those '
            f'of --accumulate {now}: resume it with {before}'
        )
