"""Stop before a loss that is not finite reaches the weights, and keep what is needed to find why.

mmengine's ``CheckInvalidLossHook`` looks every 50 iterations, after the update: by then NaN is in
the weights and maybe in a checkpoint.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object, all_reduce, barrier, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from eva_mm.engine.hooks.iteration_seed import IterationSeedHook
from eva_mm.engine.saving import save_checkpoint

# Under these names hosts keep the file of a sample, and its number in the data set.
PATH_KEYS = ('img_path', 'filename')
ID_KEYS = ('img_id', 'sample_idx')
# Key of the message hub, which checkpoints carry: a resumed run goes on counting.
COUNTER = 'non_finite_steps_skipped'
_SHOWN = 4  # ranks in a message: when weights are spoilt, all of them are to blame


class NonFiniteError(FloatingPointError):
    """A loss or gradient norm that is not finite stopped the run."""


class _NonFiniteGradients(Exception):
    """Leaves ``OptimWrapper.step`` before the optimizer is asked."""


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Keeps a loss or gradient norm that is not finite away from weights and optimizer.

    All ranks decide together, by one all-reduce of a flag after each forward pass. By default
    training stops: a debug record is saved to ``work_dir/non_finite_iter_<i>.pth`` (see
    :func:`make_record`; ``tools/replay.py`` runs it again), and every rank raises one error that
    names iteration, loss terms and files. With ``max_skips`` that many iterations are left out
    instead: there is no backward pass, weights, optimizer state, loss scale and the running
    statistics of batch norm stay as they were, the schedule moves on. While accumulating, all
    gradients of the update that the iteration belongs to are dropped.

    An error in the forward pass beside such values (boxes of NaN are dropped, and code behind it
    meets no boxes at all) ends a run of one process with the same facts and record; it is never
    skipped, since the error may have another cause. Among several processes it passes unchanged,
    after its files are logged: the others may wait in a collective of the forward pass, which no
    further one must cross.

    Overflow of scaled fp16 gradients under a finite loss is left to the loss scaler.

    Args:
        max_skips: iterations of the whole run, resumed parts included, that may be skipped; one
            more stops the run.
        record: whether a debug record is saved when the run stops. It is as large as the weights.
        check_gradients: whether a gradient norm that is not finite counts like such a loss. Needs
            ``optim_wrapper.clip_grad`` with a norm, which is then known anyway.

    Raises:
        NonFiniteError: in training, when the run stops.
        TypeError: ``max_skips`` with several optimizers.
        ValueError: ``max_skips`` is negative.
    """

    def __init__(
        self, max_skips: int = 0, record: bool = True, check_gradients: bool = True
    ) -> None:
        if max_skips < 0:
            raise ValueError(f'max_skips must not be negative, got {max_skips}')
        self.max_skips = max_skips
        self.record = record
        self.check_gradients = check_gradients
        self._dropping = False  # the gradients of the current update
        self._error: Exception | None = None  # of the current forward pass
        self._terms: dict[str, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Put the guard between the model's losses and the optimizer wrapper."""
        self._runner = runner
        self._model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._running = [
            buffer
            for module in self._model.modules()
            if isinstance(module, _NormBase)
            for buffer in module.buffers(recurse=False)
        ]
        wrapper = runner.optim_wrapper
        self._wrapped: list[tuple[Any, str, Callable]] = []
        self._wrap(self._model, 'forward', self._forward)
        self._wrap(self._model, 'parse_losses', self._parse_losses)
        if not isinstance(wrapper, OptimWrapper):
            if self.max_skips:
                raise TypeError(
                    f'max_skips={self.max_skips} needs one optimizer, got {type(wrapper).__name__}'
                )
            return
        self._wrap(wrapper, 'update_params', self._update_params)
        # A loss scaler finds such gradients itself, and they are its usual way to a lower scale.
        scaled = hasattr(wrapper, 'loss_scaler')
        if self.check_gradients and wrapper.clip_grad_kwargs and not scaled:
            self._wrap(wrapper, 'clip_func', self._clip)

    def _wrap(self, owner: Any, name: str, around: Callable) -> None:
        original = getattr(owner, name)
        self._wrapped.append((owner, name, original))
        setattr(owner, name, partial(around, original))

    def after_train(self, runner: Runner) -> None:
        """Take the guard away again."""
        for owner, name, original in self._wrapped:
            setattr(owner, name, original)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Keep what a record needs from before the step."""
        self._batch = data_batch
        self._statistics = [buffer.clone() for buffer in self._running]

    def _forward(self, forward: Callable, *args, **kwargs) -> Any:
        """Let an error that values which are not finite may have led to stop the run with facts."""
        self._error = None
        try:
            return forward(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if kwargs.get('mode') != 'loss' or not met_non_finite(error):
                raise
            if get_world_size() > 1:
                names = _names(_paths(self._batch), _ids(self._batch))
                self._runner.logger.error(
                    f'the forward pass of rank {get_rank()} failed beside values that are not '
                    f'finite, in iteration {self._runner.iter + 1}: batch of {names}'
                )
                raise
            self._error = error
            return dict(loss_of_failed_forward=torch.full((), torch.nan, device=get_device()))

    @torch.compiler.disable
    def _parse_losses(self, parse: Callable, losses: dict) -> tuple[Tensor, dict]:
        loss, terms = parse(losses)
        self._terms = terms
        if self._any_rank(loss, terms):
            self._on_non_finite('loss', None)
            self._dropping = True  # reached when the step may be skipped
        return loss, terms

    @staticmethod
    def _any_rank(loss: Tensor, terms: dict) -> bool:
        """Whether the loss of any rank is not finite; waits for the device, once."""
        values = [v for name, v in terms.items() if 'loss' in name and isinstance(v, Tensor)]
        values = torch.stack([v.detach().float() for v in [loss, *values]])
        return _on_any_rank((~values.isfinite()).any())

    def _update_params(self, update: Callable, loss: Tensor, *args, **kwargs) -> None:
        wrapper = self._runner.optim_wrapper
        if not self._dropping:
            try:
                update(loss, *args, **kwargs)
            except _NonFiniteGradients as error:
                self._on_non_finite('gradient norm', error.args[0])
                wrapper.zero_grad()
            return
        wrapper._inner_count += 1  # what `backward` does: the next update falls where it did
        if wrapper.should_update():
            wrapper.zero_grad()
            self._dropping = False

    @staticmethod
    def _clip(clip: Callable, *args, **kwargs) -> Tensor | None:
        norm = clip(*args, **kwargs)
        if norm is not None:
            norm = norm.full_tensor() if hasattr(norm, 'full_tensor') else norm
            # Replicas come to the same norm; of sharded gradients each rank may know its part.
            if _on_any_rank(~torch.isfinite(norm)):
                raise _NonFiniteGradients(float(norm))
        return norm

    def _on_non_finite(self, what: str, norm: float | None) -> None:
        """Return if the step may be skipped, raise otherwise; called on all ranks."""
        runner, hub = self._runner, self._runner.message_hub
        for buffer, before in zip(self._running, self._statistics):
            buffer.copy_(before)
        ranks = all_gather_object(self._facts())
        text = describe(what, norm, runner.iter, runner.max_iters, ranks)
        skipped = hub.get_info(COUNTER, 0)
        if skipped < self.max_skips and self._error is None:
            hub.update_info(COUNTER, skipped + 1)
            runner.logger.warning(f'step {skipped + 1} of at most {self.max_skips} skipped: {text}')
            return
        if skipped:
            text += f'\n  {skipped} steps were skipped before, max_skips={self.max_skips}'
        text += self._weights_and_record(what, norm, ranks)
        runner.logger.error(f'training stops: {text}')
        raise NonFiniteError(text) from self._error

    def _facts(self) -> dict:
        """What this rank knows of the step, as plain values and tensors."""
        terms = plain_terms(self._terms)
        return dict(
            rank=get_rank(),
            losses=terms,
            error=f'{type(self._error).__name__}: {self._error}' if self._error else None,
            finite=all(np.isfinite(v) for name, v in terms.items() if 'loss' in name),
            img_paths=_paths(self._batch),
            sample_ids=_ids(self._batch),
            digests=digests(self._batch),
        )

    def _weights_and_record(self, what: str, norm: float | None, ranks: list[dict]) -> str:
        """Save the record; return what is to be told of it and of the weights."""
        state = whole_state(self._model)
        if get_rank() != 0:
            barrier()  # an error here would have the launcher end rank 0 while it writes
            return ''
        try:
            return self._record_text(what, norm, ranks, state)
        except Exception as error:  # whatever keeps it from being written, the facts must be told
            return f'\n  there is no debug record: {error}'
        finally:
            barrier()

    def _record_text(
        self, what: str, norm: float | None, ranks: list[dict], state: Mapping[str, Tensor]
    ) -> str:
        spoilt = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
        text = '\n  weights before the step: '
        text += f'{len(spoilt)} not finite, first {spoilt[0]}' if spoilt else 'all finite'
        if self.record:
            path = os.path.join(self._runner.work_dir, f'non_finite_iter_{self._runner.iter}.pth')
            record = make_record(self._runner, self._model, what, norm, ranks, state)
            save_checkpoint(record, path)
            text += f'\n  debug record: {path} (python tools/replay.py {path})'
        return text


def _on_any_rank(flag: Tensor) -> bool:
    """Whether a flag (a bool) is set on any rank."""
    flag = flag.float()
    all_reduce(flag, op='max')
    return bool(flag)


def describe(
    what: str, norm: float | None, iteration: int, max_iters: int, ranks: Sequence[dict]
) -> str:
    """Tell iteration (counted from 1, as logs do), loss terms and files of the ranks to blame."""
    blamed = [facts for facts in ranks if not facts['finite']] or list(ranks)
    value = '' if norm is None else f' ({norm})'
    lines = [f'the {what}{value} is not finite in iteration {iteration + 1} of {max_iters}']
    for facts in blamed[:_SHOWN]:
        terms = ', '.join(f'{name}={value:.6g}' for name, value in facts['losses'].items())
        names = _names(facts['img_paths'], facts['sample_ids'])
        lines.append(f'rank {facts["rank"]}: {terms}')
        if facts['error']:
            lines.append(f'rank {facts["rank"]}: the forward pass ended in {facts["error"]}')
        lines.append(f'rank {facts["rank"]}: batch of {names}')
    if len(blamed) > _SHOWN:
        lines.append(f'and {len(blamed) - _SHOWN} more ranks')
    return '\n  '.join(lines)


def plain_terms(terms: Mapping[str, Any]) -> dict[str, float]:
    """Loss terms as numbers."""
    return {k: float(v.detach() if isinstance(v, Tensor) else v) for k, v in terms.items()}


def make_record(
    runner: Runner,
    model: nn.Module,
    what: str,
    norm: float | None,
    ranks: Sequence[dict],
    state: Mapping[str, Tensor],
) -> dict:
    """Build what ``tools/replay.py`` reads: plain values and tensors only.

    Returns:
        dict: ``kind`` ('loss' or 'gradient norm'), ``grad_norm``; ``config`` (text);
        ``iteration`` (steps before this one), ``world_size``, ``seed``, ``sampler_seed``;
        ``autocast`` (name of the dtype, None without); ``ranks``: per rank ``losses``,
        ``finite``, ``error`` (text, None without), ``img_paths``, ``sample_ids`` and ``digests``
        (of the batch's tensors);
        ``seeded`` (whether :class:`IterationSeedHook` gave the model's random numbers);
        ``state_dict`` from before the step, ``buffers`` that are not in it; ``environment``.
    """
    sampler = getattr(runner.train_dataloader.batch_sampler, 'sampler', None)
    return dict(
        kind=what,
        grad_norm=norm,
        config=runner.cfg.pretty_text,
        iteration=runner.iter,
        world_size=get_world_size(),
        seed=runner.seed,
        sampler_seed=getattr(sampler, 'seed', None),
        autocast=autocast_dtype(runner),
        ranks=list(ranks),
        seeded=any(isinstance(hook, IterationSeedHook) for hook in runner.hooks),
        state_dict=dict(state),
        buffers={k: v.cpu() for k, v in model.named_buffers() if k not in state},
        environment=dict(torch=str(torch.__version__), device=get_device()),
    )


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` with shards put together: on rank 0, on the CPU; elsewhere nothing."""
    state = {}
    for name, value in model.state_dict().items():
        value = value.full_tensor() if hasattr(value, 'full_tensor') else value
        if isinstance(value, Tensor) and get_rank() == 0:
            state[name] = value.detach().cpu()
    return state


def autocast_dtype(runner: Runner) -> str | None:
    """Name of the dtype under which the optimizer wrapper has the model run, None for none."""
    device = get_device()
    with runner.optim_wrapper.optim_context(runner.model):
        if not torch.is_autocast_enabled(device):
            return None
        return str(torch.get_autocast_dtype(device)).removeprefix('torch.')


def met_non_finite(error: BaseException) -> bool:
    """Whether values that are not finite were at hand in the functions an error went through."""
    step = error.__traceback__
    while step is not None:
        values = floating_tensors(list(step.tb_frame.f_locals.values()))
        if not all(tensor.isfinite().all() for tensor in values):
            return True
        step = step.tb_next
    return False


def floating_tensors(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in nested tuples, lists and dictionaries; of shards, this rank's."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value.to_local() if hasattr(value, 'to_local') else value
    elif isinstance(value, Mapping):
        yield from floating_tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from floating_tensors(item)


def find_values(batch: Any, keys: Sequence[str]) -> list:
    """Values of the first of ``keys`` that the samples in a batch carry, in their order."""
    for key in keys:
        found = list(_values(batch, key))
        if found:
            return found
    return []


def _values(node: Any, key: str) -> Iterator[Any]:
    if isinstance(node, BaseDataElement):
        if key in node:
            yield node.get(key)
    elif isinstance(node, Mapping):
        if key in node:
            value = node[key]
            yield from value if isinstance(value, (list, tuple, Tensor)) else [value]
        else:
            for value in node.values():
                yield from _values(value, key)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _values(value, key)


def _paths(batch: Any) -> list[str]:
    return [str(path) for path in find_values(batch, PATH_KEYS)]


def _ids(batch: Any) -> list[int | str]:
    values = find_values(batch, ID_KEYS)
    return [int(v) if isinstance(v, (int, np.integer, Tensor)) else str(v) for v in values]


def _names(paths: Sequence[str], ids: Sequence[int | str]) -> str:
    return ', '.join(paths or [f'sample {i}' for i in ids]) or 'unnamed samples'


def digests(batch: Any) -> list[str]:
    """SHA-256 of each tensor in a batch, by which a rebuilt batch is known to be the same."""
    if isinstance(batch, Tensor):
        content = batch.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return [hashlib.sha256(content).hexdigest()]
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return [digest for value in batch for digest in digests(value)]
    return []
