"""Which checkpoint a run goes on from, and what of it must be known before the Runner is built."""

from __future__ import annotations

import io
import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.logging import print_log

from eva_mm.errors import InputError
from eva_mm.zoo.sharded import STATE_FILE, check_whole, is_sharded

from .checkpoint import safe_load
from .saving import put_all_back, put_back

# What a checkpoint of a run holds beside its weights; weights alone cannot be resumed.
_STATE = ('meta', 'message_hub', 'optimizer')


def read_state(path: str, backend_args: dict | None = None) -> dict:
    """Read the head of a run's checkpoint; the tensors of a local file stay on disk.

    Args:
        path: of a file, here or on another storage (``s3://...``), or of a folder of shards.
        backend_args: of mmengine's backend for that storage.

    Returns:
        ``meta``: ``iter``, ``epoch``, ``seed`` and what hooks noted.

    Raises:
        FileNotFoundError: no such file.
        InputError: it, or a file in the folder, is cut off, or it holds no state of a run.
    """
    if '://' in path:
        content = get_file_backend(path, backend_args=backend_args).get(path)
        try:
            checkpoint = safe_load(io.BytesIO(content), map_location='cpu')
        except InputError as error:
            raise InputError(f'{path}: {error}') from error
    else:
        put_back(path.rstrip(os.sep))
        file = path
        if is_sharded(path):
            check_whole(path)
            file = str(Path(path, STATE_FILE))
        checkpoint = safe_load(file, map_location='cpu', mmap=True)
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
    hook = _saving(cfg)
    before, _, after = (hook.get('filename_tmpl') or '@_{}.pth').partition('{}')
    before = re.escape(before).replace('@', '(?:iter|epoch)')
    pattern = re.compile(rf'{before}(\d+){re.escape(after)}')
    numbers = {}
    for path in _files_beside_checkpoints(cfg, hook):
        if match := pattern.fullmatch(posixpath.basename(path)):
            numbers[path] = int(match[1])
    pointer = Path(cfg.work_dir, 'last_checkpoint')
    last = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if last and os.path.basename(last) not in map(os.path.basename, numbers):
        match = pattern.fullmatch(os.path.basename(last))
        numbers[last] = int(match[1]) if match else -1
    return sorted(numbers, key=numbers.get, reverse=True)


def _files_beside_checkpoints(cfg: Config, hook: ConfigDict) -> list[str]:
    """Paths of what may be checkpoints in the folder that CheckpointHook writes to."""
    folder, backend = _folder(cfg, hook)
    if not backend.isdir(folder):
        return []
    sharded = cfg.get('runner_type') == 'ShardedRunner'  # it saves folders
    names = backend.list_dir_or_file(folder, list_dir=sharded, recursive=False)
    return [backend.join_path(folder, name) for name in names]


def _folder(cfg: Config, hook: ConfigDict) -> tuple[str, Any]:
    """Folder that CheckpointHook writes to, and mmengine's backend for it."""
    folder, backend_args = str(cfg.work_dir), hook.get('backend_args')
    backend = get_file_backend(hook.get('out_dir') or folder, backend_args=backend_args)
    if hook.get('out_dir') and str(hook.out_dir) != folder:
        folder = backend.join_path(hook.out_dir, os.path.basename(folder.rstrip(os.sep)))
    return folder, backend


def _saving(cfg: Config) -> ConfigDict:
    """Config of the hook that saves checkpoints."""
    return (cfg.get('default_hooks') or {}).get('checkpoint') or ConfigDict()


def _warn_of_another_branch(cfg: Config, chosen: str) -> None:
    """A run that went back to an earlier checkpoint leaves later ones of its first branch."""
    pointer = Path(cfg.work_dir, 'last_checkpoint')
    last = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if last and os.path.basename(last) != posixpath.basename(chosen):
        print_log(
            f'{chosen} is furthest and resumed, although {last} was saved last: give --resume '
            f'{last} if the run had gone back to an earlier checkpoint',
            logger='current',
            level=logging.WARNING,
        )


def newest_readable(cfg: Config) -> tuple[str, dict] | None:
    """The furthest checkpoint of a work dir that can be read, with its ``meta``.

    Each one that cannot be is named in a warning.

    Returns:
        None when there is none at all.

    Raises:
        InputError: there are some, and none can be read.
    """
    broken = []
    folder, backend = _folder(cfg, _saving(cfg))
    if isinstance(backend, LocalBackend):
        put_all_back(folder)
    for path in saved_checkpoints(cfg):
        try:
            meta = read_state(path, _saving(cfg).get('backend_args'))
        except InputError as error:
            broken.append(str(error))
            print_log(f'passed over: {error}', logger='current', level=logging.WARNING)
            continue
        if broken:
            print_log(f'resuming from {path} in its place', logger='current')
        else:
            _warn_of_another_branch(cfg, path)
        return path, meta
    if broken:
        raise InputError(f'no checkpoint in {cfg.work_dir} can be resumed: ' + '; '.join(broken))
    return None


def fit_to_checkpoint(cfg: Config, path: str, meta: dict[str, Any]) -> None:
    """Give the config the seed of a checkpoint, before samplers are built by it.

    mmengine takes the seed over when it loads the checkpoint; the sampler is there by then, with a
    seed drawn anew.

    Raises:
        InputError: the config asks for another seed or strategy, or counts iterations otherwise.
    """
    sharded = is_sharded(path)
    if sharded != (cfg.get('runner_type') == 'ShardedRunner'):
        before, now = ('fsdp', 'ddp') if sharded else ('ddp', 'fsdp')
        raise InputError(
            f'{path} was saved by --strategy {before}, and --strategy {now} cannot go on from it: '
            f'resume it with {before} on any number of processes, or start from its weights by '
            f'load_from'
        )
    last = cfg.train_cfg.get('max_iters') if 'train_cfg' in cfg else None
    if last is not None and meta['iter'] >= last:
        print_log(
            f'{path} is at iteration {meta["iter"]} of {last}: there is nothing left to train',
            logger='current',
            level=logging.WARNING,
        )
    randomness = cfg.setdefault('randomness', ConfigDict(seed=None))
    seed = meta.get('seed')
    if seed is not None and randomness.get('seed') not in (None, seed):
        raise InputError(
            f'{path} was trained with seed {seed}, but randomness.seed is {randomness.seed}: '
            f'leave it out, or set it to {seed}'
        )
    if seed is not None:
        randomness.seed = seed
    before, now = meta.get('length_factor', 1.0), cfg.get('length_factor', 1.0)
    if before != now:
        raise InputError(
            f'{path} is of a run that --auto-scale-lr made {before:g} times as long as the config, '
            f'now it is {now:g} times: its schedule would not fit. Resume it with the same batch '
            f'and options'
        )
    before, now = meta.get('accumulate', 1), cfg.get('accumulate', 1)
    if before != now:
        raise InputError(
            f'{path} was trained with --accumulate {before}, so that its iterations are not those '
            f'of --accumulate {now}: resume it with {before}'
        )
    _check_fitted_length(path, meta.get('fitted_length') or {}, cfg.get('fitted_length') or {})


def _check_fitted_length(path: str, before: dict, now: dict) -> None:
    """Schedulers come from the checkpoint and the length from the config: they have to agree."""
    other = [
        f'{key} was {before[key]}, now it is {now[key]}'
        for key in before
        if key in now and before[key] != now[key]
    ]
    if other:
        raise InputError(
            f'{path} is of a run that was fitted to its data otherwise: {"; ".join(other)}. Resume '
            f'it with the same data and options, and the same images per update (GPUs x batch '
            f'size x --accumulate)'
        )
