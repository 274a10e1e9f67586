"""Checkpoints that a kill cannot spoil."""

import glob
import os.path as osp
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from eva_mm.engine.saving import TEMPORARY, put_all_back, write_whole


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's hook, which removes an outdated checkpoint only after the new one is complete.

    mmengine (0.10: ``mmengine/hooks/checkpoint_hook.py``) removes first, so that a kill while it
    writes may leave none; it also writes ``last_checkpoint`` in place. Files themselves are
    written by :mod:`eva_mm.engine.saving`. What a killed run left half-written, or had no time to
    remove, is removed at the start. Arguments are those of ``CheckpointHook``.
    """

    def before_train(self, runner: Runner) -> None:
        """Also remove what a killed run left."""
        super().before_train(runner)
        if not is_main_process():
            return
        self._remove_outdated(runner.message_hub.get_info('outdated_ckpt_ids', ()))
        if isinstance(self.file_backend, LocalBackend):
            names = (
                self.filename_tmpl.format('*'),
                'best_*',
                'last_checkpoint',
                'non_finite_iter_*',
            )
            for folder in {str(self.out_dir), runner.work_dir}:
                put_all_back(folder)
                for name in names:
                    for path in glob.glob(osp.join(glob.escape(folder), name + TEMPORARY)):
                        runner.logger.info(f'{path}, left by a killed run, is removed')
                        _remove(self.file_backend, path)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note how long the run is, against its config or fitted to data, for who resumes it."""
        checkpoint['meta']['length_factor'] = runner.cfg.get('length_factor', 1.0)
        if 'fitted_length' in runner.cfg:
            checkpoint['meta']['fitted_length'] = dict(runner.cfg.fitted_length)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = self._keep(runner, step)
        # In the new checkpoint, so that a run killed before it has removed them does so later.
        runner.message_hub.update_info('outdated_ckpt_ids', outdated)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        pointer = osp.join(runner.work_dir, 'last_checkpoint')
        write_whole(pointer, lambda file: file.write(str(self.last_ckpt).encode()))
        self._remove_outdated(outdated)

    def _remove_outdated(self, steps: Iterable[int]) -> None:
        for step in steps:
            path = self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
            _remove(self.file_backend, path)

    def _keep(self, runner: Runner, step: int) -> list[int]:
        """Note a step as kept and return those that are too old; saved in the checkpoint."""
        if self.max_keep_ckpts <= 0 or step in self.keep_ckpt_ids:
            return []
        steps = [*self.keep_ckpt_ids, step]
        self.keep_ckpt_ids = deque(steps[-self.max_keep_ckpts :], self.max_keep_ckpts)
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        return steps[: -self.max_keep_ckpts]

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not hasattr(self, 'file_backend'):
            return  # a validation by itself, Runner.val(), has nothing to save
        with self._removing_last() as later:
            super()._save_best_checkpoint(runner, metrics)
        for path in later.paths - self._best_paths():
            _remove(self.file_backend, path)

    def _best_paths(self) -> set[Any]:
        if not self.save_best:
            return set()
        if len(self.key_indicators) == 1:
            return {self.best_ckpt_path}
        return set(self.best_ckpt_path_dict.values())

    @contextmanager
    def _removing_last(self) -> Iterator['_RemoveLater']:
        """Put off what the parent removes until it has written; never, if it fails."""
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            yield later
        finally:
            self.file_backend = backend


class _RemoveLater:
    """A file backend that notes what it should remove."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.paths: set[str] = set()

    def remove(self, path: str) -> None:
        self.paths.add(path)

    rmtree = remove

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


def _remove(backend: Any, path: str) -> None:
    if backend.isfile(path):
        backend.remove(path)
    elif backend.isdir(path):  # DeepSpeed saves folders
        backend.rmtree(path)
