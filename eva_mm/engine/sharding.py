"""Weights, gradients and optimizer state dealt to the processes: ``--strategy fsdp``.

PyTorch's own FSDP2 (``fully_shard``) and distributed checkpoints under mmengine's plain Runner,
from the same config as DistributedDataParallel. Each process holds 1/N of everything; a block's
weights are put together while it runs.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import get_rank
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import BaseTTAModel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, RUNNERS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from eva_mm.errors import InputError, UsageError
from eva_mm.zoo.sharded import (
    MODEL,
    OPTIMIZER,
    STATE_FILE,
    is_sharded,
    no_group_is_fine,
    read_index,
    read_tensors,
    reason,
)

from .checkpoint import safe_load
from .compilation import compile_blocks, transformer_blocks
from .memory import nbytes
from .processes import check_shared, on_first_process
from .saving import TEMPORARY, put_in_place
from .strict_loading import CheckpointMismatchError, Mismatch

STRATEGIES = ('ddp', 'fsdp')
_RUNNER = 'ShardedRunner'
# fp16's loss scale is left out: nothing here has tried it on shards.
_WRAPPERS = ('OptimWrapper', 'BF16OptimWrapper')


def is_sharded_run(cfg: Config) -> bool:
    """Whether a config is of a run that shards."""
    return cfg.get('runner_type') == _RUNNER


def set_strategy(cfg: Config, strategy: str | None) -> None:
    """Choose how several processes share the work, in place.

    Args:
        cfg: of a run.
        strategy: 'ddp': every process holds the whole model; 'fsdp': :class:`ShardedRunner`;
            None: as the config says, by default 'ddp'.

    Raises:
        UsageError: another strategy, or 'fsdp' for a config with a runner of its own.
    """
    if strategy not in (None, *STRATEGIES):
        raise UsageError(f'--strategy takes {" or ".join(STRATEGIES)}, not {strategy}')
    if strategy == 'ddp' and is_sharded_run(cfg):
        cfg.pop('runner_type')
        hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
        if hook.get('filename_tmpl'):
            hook.filename_tmpl = hook.filename_tmpl.removesuffix('.pth') + '.pth'  # a file again
    if strategy == 'fsdp':
        if cfg.get('runner_type', 'Runner') not in ('Runner', _RUNNER):
            raise UsageError(
                f'--strategy fsdp: the config has a runner of its own, {cfg.runner_type}'
            )
        cfg.runner_type = _RUNNER
    if is_sharded_run(cfg):
        hooks = cfg.setdefault('default_hooks', ConfigDict())
        hook = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook'))
        kind = 'epoch' if hook.get('by_epoch', True) else 'iter'
        name = hook.get('filename_tmpl') or f'{kind}_{{}}.pth'
        hook.filename_tmpl = name.removesuffix('.pth')  # a folder


def check_sharded_training(cfg: Config) -> None:
    """Refuse what cannot be trained in shards; other runs pass.

    Raises:
        UsageError: an optimizer wrapper other than fp32's and bf16's, or a moving average of the
            weights.
    """
    if not is_sharded_run(cfg):
        return
    kind = (cfg.get('optim_wrapper') or {}).get('type', 'OptimWrapper')
    if kind not in _WRAPPERS:
        raise UsageError(f'--strategy fsdp needs optim_wrapper.type in {_WRAPPERS}, but got {kind}')
    hooks = [*(cfg.get('custom_hooks') or []), *(cfg.get('default_hooks') or {}).values()]
    for hook in filter(None, hooks):
        kind = hook.get('type')
        kind = HOOKS.get(kind) if isinstance(kind, str) else kind
        if isinstance(kind, type) and issubclass(kind, EMAHook):
            raise UsageError(
                f'--strategy fsdp cannot keep a moving average of the weights ({kind.__name__}): '
                f'use --strategy ddp, or leave the hook out'
            )


def whole_bytes(model: nn.Module) -> int:
    """Bytes of weights and gradients that a process holds whole at one time, estimated.

    What lies outside of the blocks is whole all the time. Of blocks there are two, one being
    fetched while the other runs, and the gradient of one beside the buffer it is reduced from.
    """
    blocks = [sum(map(nbytes, block.parameters())) for block in transformer_blocks(model)]
    rest = sum(map(nbytes, model.parameters())) - sum(blocks)
    return 2 * rest + 4 * max(blocks, default=0)


def shard_model(model: nn.Module) -> None:
    """Deal the parameters of a model to all processes, in place.

    Each of :func:`transformer_blocks` is put together for itself while it runs, what is outside of
    them for the whole pass. Weights stay fp32 and the forward pass under autocast, so that its
    numbers are those of DistributedDataParallel; gradients are averaged in fp32.

    Args:
        model: with its final weights, the same in every process, on this process's device.
    """
    mesh = init_device_mesh(get_device(), (dist.get_world_size(),))
    for block in transformer_blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


@RUNNERS.register_module()
class ShardedRunner(Runner):
    """mmengine's Runner with FSDP2 in the place of DistributedDataParallel.

    Weights are initialised, and those of ``load_from`` read, before the model is sharded: every
    way of loading is that of the plain Runner. Checkpoints are folders (``iter_N``), written by
    all processes and read by any number of them, one included; ``--resume`` takes them, and so
    does everything that reads weights. A checkpoint whose name ends in ``.pth`` is one ordinary
    file of the whole weights; training ends with such a one beside the last folder.

    A single process holds everything and shards nothing. The config's `compile` compiles the whole
    step there, as mmengine does, and each block among several processes.

    Gradients are reduced in every pass of an accumulated update: held back, they would be whole
    ones, and take the memory that sharding saves.

    Arguments are those of :class:`mmengine.runner.Runner`.

    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._prepared = False  # the weights are there, and sharded
        self._extra: dict[str, Any] = {}
        super().__init__(*args, **kwargs)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Put the model on the device; it is sharded once its weights are there."""
        if not self.distributed:
            return super().wrap_model(None, model)
        return model.to(get_device())

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """Build the optimizer over the shards."""
        self._prepare(training=True)
        return super().build_optim_wrapper(optim_wrapper)

    def _init_model_weights(self) -> None:
        """Do nothing where the Runner would initialise: that is over."""

    def load_or_resume(self) -> None:
        """Resume; what is tested only is loaded and sharded here."""
        self._prepare(training=False)
        super().load_or_resume()

    def _prepare(self, training: bool) -> None:
        """Give the model its weights, then shard it; once."""
        if self._prepared:
            return
        if training:
            super()._init_model_weights()
        if self._load_from is not None and not self._resume:
            self.load_checkpoint(self._load_from)
        if self.world_size > 1:
            model = self.model
            shard_model(model.module if isinstance(model, BaseTTAModel) else model)
        self._prepared = True

    def _maybe_compile(self, target: str) -> None:
        """Compile the blocks: a whole step of sharded weights cannot be."""
        options = self.cfg.get('compile')
        if self.world_size == 1 or not options:
            super()._maybe_compile(target)
            return
        compile_blocks(self.model, None if options is True else options, forward_only=True)

    def train(self) -> nn.Module:
        """Train; then save the whole weights as one file.

        Raises:
            InputError: the work dir is not shared by all processes.
        """
        check_shared(self.work_dir, 'the work dir of --strategy fsdp')
        model = super().train()
        for hook in self.hooks:
            if isinstance(hook, CheckpointHook) and '{}' in (hook.filename_tmpl or ''):
                number = self.epoch if hook.by_epoch else self.iter
                name = hook.filename_tmpl.format(number).removesuffix('.pth') + '.pth'
                meta = dict(epoch=self.epoch, iter=self.iter)
                self.save_checkpoint(hook.out_dir, name, save_param_scheduler=False, meta=meta)
        return model

    # -------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Save a checkpoint; all processes call this.

        Args:
            out_dir: folder for it.
            filename: `NAME.pth`: the whole weights, as one file that every tool reads. Any other
                name: a folder of shards, from which a run is resumed.
            file_client_args: has to be None.
            save_optimizer: whether a folder holds the optimizer's state.
            save_param_scheduler: whether the schedule's state is saved.
            meta: to be saved beside the Runner's own.
            by_epoch: what the checkpoint's `epoch` and `iter` count, as of mmengine.
            backend_args: has to be None.

        Raises:
            OSError, InputError: it could not be written, or not all processes see the folder; what
                was there before is untouched.
        """
        if file_client_args or backend_args or '://' in str(out_dir):
            raise UsageError(f'--strategy fsdp saves on file systems only, not in {out_dir}')
        options = dict(save_param_scheduler=save_param_scheduler, meta=meta, by_epoch=by_epoch)
        if filename.endswith('.pth'):
            from torch.distributed.checkpoint import state_dict as dcp  # slow to import

            whole = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)
            weights = dcp.get_model_state_dict(self.model, options=whole)  # in the first process
            self._save_state(out_dir, filename, dict(state_dict=weights), **options)
        else:
            self._save_folder(os.path.join(out_dir, filename), save_optimizer, options)

    def _save_folder(self, folder: str, save_optimizer: bool, options: dict) -> None:
        """Write a folder under a temporary name, then rename it."""
        temporary = folder + TEMPORARY
        on_first_process(lambda: _make_empty(temporary))
        try:
            check_shared(temporary, 'a checkpoint of --strategy fsdp')
            self._fill_folder(temporary, save_optimizer, options)
            on_first_process(lambda: put_in_place(temporary, folder))
        except Exception:  # the same in all processes
            if get_rank() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _fill_folder(self, folder: str, save_optimizer: bool, options: dict) -> None:
        """Write tensors and state into an empty folder."""
        tensors = self._model_tensors()
        extra: dict[str, Any] = dict(state_dict={})
        if save_optimizer:
            state = self.optim_wrapper.state_dict()
            moments, rest = _split_state(state.pop('state'))
            tensors |= moments
            extra['optimizer'] = {**state, 'state': rest}
        _write_shards(folder, tensors)
        self._save_state(folder, STATE_FILE, extra, **options)

    def _save_state(self, out_dir: str, name: str, extra: dict, **options: Any) -> None:
        """Let the plain Runner save what it saves, in the first process, with `extra` put in.

        All processes hear of a failure: the others would wait for the first in their next step.
        """
        save = super().save_checkpoint

        def save_with_extra() -> None:
            self._extra = extra
            try:
                save(out_dir, name, save_optimizer=False, **options)
            finally:
                self._extra = {}

        on_first_process(save_with_extra)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call all hooks; those that change a checkpoint see it complete."""
        if fn_name == 'before_save_checkpoint':
            kwargs['checkpoint'].update(self._extra)
        super().call_hook(fn_name, **kwargs)

    def _model_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers, in which a folder's are read."""
        return {MODEL + name: value for name, value in self.model.state_dict().items()}

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = 'default',
    ) -> None:
        """Go on from a folder that any number of processes saved.

        Arguments are those of the plain Runner; `map_location` is ignored, since each shard goes
        where its parameter is.

        Raises:
            InputError: it is no folder of shards, is broken, or holds another model or optimizer.
        """
        if not is_sharded(filename):
            raise InputError(
                f'{filename} is no folder that --strategy fsdp saved, and cannot be resumed with '
                f'it; its weights can be started from by load_from'
            )
        # The plain Runner reads nothing but the state, because the optimizer is done here.
        super().resume(filename, False, resume_param_scheduler, map_location='cpu')
        if resume_optimizer:
            self._load_optimizer(filename)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        """Read weights as the plain Runner does, or a folder into the shards of a model."""
        if not self._prepared:
            return super().load_checkpoint(filename, *args, **kwargs)
        tensors = self._model_tensors()
        _compare(filename, tensors, MODEL, type(self.model).__name__)
        read_tensors(filename, tensors, together=self.distributed)
        self.logger.info(f'Load checkpoint from {filename}')
        return safe_load(os.path.join(filename, STATE_FILE), map_location='cpu')

    def _load_optimizer(self, folder: str) -> None:
        plain = safe_load(os.path.join(folder, STATE_FILE), map_location='cpu').get('optimizer')
        if plain is None:
            raise InputError(f'{folder} holds no state of an optimizer')
        groups = self.optim_wrapper.optimizer.param_groups
        _compare_groups(folder, plain['param_groups'], groups)
        params = [param for group in groups for param in group['params']]
        tensors = _empty_state(folder, params)
        read_tensors(folder, tensors, together=self.distributed)
        self.optim_wrapper.load_state_dict({**plain, 'state': _join_state(tensors, plain['state'])})


def _split_state(state: dict[int, dict]) -> tuple[dict[str, Tensor], dict[int, dict]]:
    """Optimizer's state as named tensors, and what of it is none."""
    tensors, rest = {}, {}
    for index, values in state.items():
        rest[index] = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
        named = {k: v for k, v in values.items() if isinstance(v, Tensor)}
        tensors |= {f'{OPTIMIZER}{index}.{key}': value for key, value in named.items()}
    return tensors, rest


def _join_state(tensors: dict[str, Tensor], rest: dict[int, dict]) -> dict[int, dict]:
    """Undo :func:`_split_state`."""
    state = {index: dict(values) for index, values in rest.items()}
    for name, value in tensors.items():
        index, key = name.removeprefix(OPTIMIZER).split('.', 1)
        state[int(index)][key] = value
    return state


def _empty_state(folder: str, params: list[nn.Parameter]) -> dict[str, Tensor]:
    """Tensors for the optimizer's state in a folder, sharded as their parameters are."""
    tensors = {}
    for name, entry in read_index(folder).state_dict_metadata.items():
        if not name.startswith(OPTIMIZER):
            continue
        param = params[int(name.removeprefix(OPTIMIZER).split('.', 1)[0])]
        dtype = entry.properties.dtype
        if entry.size == param.shape:
            tensors[name] = torch.empty_like(param, dtype=dtype, requires_grad=False)
        else:
            tensors[name] = torch.empty(entry.size, dtype=dtype)
    return tensors


def _compare(folder: str, tensors: dict[str, Tensor], prefix: str, what: str) -> None:
    """Refuse a folder whose tensors under a prefix are not exactly these."""
    entries = {
        name: entry.size
        for name, entry in read_index(folder).state_dict_metadata.items()
        if name.startswith(prefix)
    }
    differences = Mismatch(
        [name.removeprefix(prefix) for name in tensors if name not in entries],
        [name.removeprefix(prefix) for name in entries if name not in tensors],
        {
            name.removeprefix(prefix): (tuple(value.shape), tuple(entries[name]))
            for name, value in tensors.items()
            if name in entries and value.shape != entries[name]
        },
    )
    if differences:
        raise CheckpointMismatchError(f'{what} and {folder} do not fit\n{differences.report()}')


def _compare_groups(folder: str, saved: list[dict], now: list[dict]) -> None:
    """Refuse parameter groups other than those saved: state is told apart by its number."""
    sizes = [[len(group['params']) for group in groups] for groups in (saved, now)]
    names = [[group.get('param_names') for group in groups] for groups in (saved, now)]
    if sizes[0] != sizes[1] or names[0] != names[1]:
        raise InputError(
            f'{folder} was saved with {sizes[0]} parameters per group of the optimizer, now there '
            f'are {sizes[1]}, or others: layer decay, weight decay and what is frozen have to be '
            f'those of the run that is resumed'
        )


def _write_shards(folder: str, tensors: dict[str, Tensor]) -> None:
    from torch.distributed import checkpoint as dcp  # slow to import

    try:
        with no_group_is_fine():
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(folder, sync_files=True))
    except (Exception, dcp.CheckpointException) as error:  # of any process; all are told
        raise OSError(
            f'checkpoint {folder.removesuffix(TEMPORARY)} could not be written: '
            f'{reason(error)}. '
            f'Checkpoints written before are untouched.'
        ) from error


def _make_empty(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
