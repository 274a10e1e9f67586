"""Run again the step at which :class:`NonFiniteLossHook` stopped, and find where it went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from eva_mm import compat
from eva_mm.engine.checkpoint import safe_load
from eva_mm.engine.dry_run import model_config
from eva_mm.engine.hooks.iteration_seed import seed_iteration
from eva_mm.engine.hooks.non_finite import (
    PATH_KEYS,
    digests,
    find_values,
    floating_tensors,
    plain_terms,
)
from eva_mm.errors import InputError

_KEYS = {
    'autocast',
    'buffers',
    'config',
    'environment',
    'iteration',
    'kind',
    'ranks',
    'sampler_seed',
    'seed',
    'seeded',
    'state_dict',
    'world_size',
}
# Only these have to do with which samples make a batch; workers would only be in the way.
_LOADER_KEYS = (
    'dataset',
    'sampler',
    'batch_sampler',
    'batch_size',
    'drop_last',
    'collate_fn',
    'num_batch_per_epoch',
)
_SHOWN = 5  # names in a line
_BETWEEN = ': the fault is in code outside of modules, such as the functions of losses'


def replay(
    path: str, device: str | None = None, rank: int | None = None, anomaly: bool = False
) -> bool:
    """Rebuild model and batch from a debug record, run the step, print what is not finite.

    Prints each loss term as it was and as it is now, the first module whose output is not finite
    and, if the loss is finite, the first gradient that is not. Nothing is written. A record names
    the code to run, as a config does: only replay records that you trust.

    Args:
        path: file that the hook saved.
        device: where to run; default: the best there is. The very same numbers need the very
            same kind of device.
        rank: whose batch; default: the first that is to blame.
        anomaly: run the backward pass in any case, with autograd's anomaly detection, which tells
            the line of the forward pass whose gradient turns into NaN. Slow.

    Returns:
        bool: Whether loss or gradients are not finite this time too.

    Raises:
        InputError: The file is no debug record, has no such rank, or its sampler cannot find the
            batch again.
    """
    record = load_record(path)
    facts = choose_rank(record, rank)
    cfg = config_of(record)
    device = torch.device(device or get_device())
    _line('record', f'{path}: {record["kind"]} not finite in iteration {record["iteration"] + 1}')
    _line('', f'rank {facts["rank"]} of {record["world_size"]}, seed {record["seed"]}')
    _line('device', _told(str(device.type), record['environment']['device']))
    _line('torch', _told(str(torch.__version__), record['environment']['torch']))
    _line('autocast', str(record['autocast'] or 'off'))
    batch = rebuild_batch(cfg, record, facts['rank'])
    describe_batch(batch, facts)
    model = rebuild_model(cfg, record).to(device)
    spoilt = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    _line('weights', _names(spoilt, 'all finite'))
    if not record['seeded']:
        _line('', 'the run had no IterationSeedHook: random numbers in the model are others')
    seed_iteration(record['seed'], record['iteration'], facts['rank'])
    return run_step(model, batch, facts, record['autocast'], anomaly)


def load_record(path: str) -> dict:
    """Read a debug record, without executing anything from it; see :func:`replay`."""
    record = safe_load(path, map_location='cpu')
    if missing := sorted(_KEYS - record.keys()):
        raise InputError(
            f'{path} is no debug record: it lacks {", ".join(missing)}; expected a file '
            f'non_finite_iter_<i>.pth that NonFiniteLossHook saved'
        )
    return record


def choose_rank(record: dict, rank: int | None) -> dict:
    """What the record holds of a rank, by default of the first whose loss was not finite."""
    ranks = record['ranks']
    if rank is None:
        return next((facts for facts in ranks if not facts['finite']), ranks[0])
    if not 0 <= rank < len(ranks):
        raise InputError(f'--rank {rank}: the record holds ranks 0 to {len(ranks) - 1}')
    return ranks[rank]


def config_of(record: dict) -> Config:
    """Config of the recorded run, with its modules imported and its scope set."""
    compat.prepare()
    cfg = Config.fromstring(record['config'], file_format='.py')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    return cfg


def rebuild_batch(cfg: Config, record: dict, rank: int) -> Any:
    """Load the batch that a rank was given in the recorded iteration.

    It is the very same where augmentations depend on (seed, position) alone, see
    :mod:`eva_mm.engine.exact_data`; digests in the record tell.
    """
    options = {
        key: cfg.train_dataloader[key] for key in _LOADER_KEYS if key in cfg.train_dataloader
    }
    loader = Runner.build_dataloader(options, seed=record['seed'])
    place_sampler(loader, record, rank)
    indices = next(iter(loader.batch_sampler))
    return loader.collate_fn([loader.dataset[index] for index in indices])


def place_sampler(loader: DataLoader, record: dict, rank: int) -> None:
    """Let a loader's next batch be the one of a rank in the recorded iteration."""
    sampler = loader.batch_sampler.sampler
    if type(loader.batch_sampler) is not BatchSampler or not hasattr(sampler, 'skip'):
        raise InputError(
            f'{type(loader.batch_sampler).__name__} over {type(sampler).__name__} cannot find '
            f'the batch again: expected batches of fixed size from a sampler that can skip, such '
            f'as ExactInfiniteSampler'
        )
    sampler.rank, sampler.world_size = rank, record['world_size']
    if record['sampler_seed'] is not None:
        sampler.seed = record['sampler_seed']
    sampler.skip(record['iteration'] * loader.batch_size)


def rebuild_model(cfg: Config, record: dict) -> nn.Module:
    """Model with the weights and buffers from before the step, in training mode."""
    model = MODELS.build(model_config(cfg))
    model.load_state_dict(record['state_dict'])
    for name, value in record['buffers'].items():
        owner, _, leaf = name.rpartition('.')
        model.get_submodule(owner)._buffers[leaf] = value
    return model.train()


def describe_batch(batch: Any, facts: dict) -> None:
    """Print the files of the batch and whether it is the recorded one."""
    paths = [str(path) for path in find_values(batch, PATH_KEYS)]
    same = digests(batch) == facts['digests'] and paths == facts['img_paths']
    text = 'identical to the recorded one' if same else 'NOT the recorded one'
    _line('batch', f'{len(paths)} files, {text}')
    for index, path in enumerate(paths):
        recorded = facts['img_paths'][index] if index < len(facts['img_paths']) else 'nothing'
        _line('', path if path == recorded else f'{path} (recorded: {recorded})')
    if not same and paths == facts['img_paths']:
        _line('', 'the same files with other content: changed since, or augmented otherwise')


def run_step(
    model: nn.Module, batch: Any, facts: dict, autocast: str | None, anomaly: bool
) -> bool:
    """Run forward and, where it tells something, backward pass; print the findings.

    Returns:
        bool: Whether something was not finite.
    """
    device = next(model.parameters()).device.type
    dtype = getattr(torch, autocast) if autocast else None
    watch = Watch()
    with torch.autograd.set_detect_anomaly(anomaly):
        with watch.forward_of(model), torch.autocast(device, dtype, enabled=bool(autocast)):
            data = model.data_preprocessor(batch, True)
            try:
                losses = model._run_forward(data, mode='loss')
            except Exception as error:
                describe_outputs(watch.outputs, False)
                _line('', f'the forward pass ended in {type(error).__name__}: {error}')
                return bool(watch.outputs)
        loss, terms = model.parse_losses(losses)
        describe_terms(plain_terms(terms), facts['losses'])
        finite = bool(torch.isfinite(loss))
        describe_outputs(watch.outputs, finite)
        if finite or anomaly:
            finite &= backward(model, loss, watch)
    return not finite


def describe_terms(terms: Mapping[str, float], recorded: Mapping[str, float]) -> None:
    """Print each loss term as recorded and as replayed."""
    width = max(len(name) for name in [*terms, 'loss term'])
    _line('losses', f'{"loss term":{width}}  {"recorded":>16}  {"replayed":>16}')
    for name, value in terms.items():
        before = recorded.get(name, float('nan'))
        same = value == before or (value != value and before != before)
        verdict = 'same' if same else 'differs'
        _line('', f'{name:{width}}  {before:16.9g}  {value:16.9g}  {verdict}')


def describe_outputs(outputs: Sequence[str], finite: bool) -> None:
    """Print the first outputs of modules that are not finite, given whether the loss is finite."""
    if not outputs:
        _line('forward', 'the output of every module is finite' + ('' if finite else _BETWEEN))
        return
    _line('forward', f'first module whose output is not finite: {outputs[0]}')
    if len(outputs) > 1:
        rest = [text.split(':', 1)[0] for text in outputs[1:]]
        _line('', f'then {_names(rest, "")}')


def backward(model: nn.Module, loss: Tensor, watch: Watch) -> bool:
    """Run the backward pass; print and return whether all gradients are finite."""
    try:
        loss.backward()
    except RuntimeError as error:  # of the anomaly detection
        _line('backward', str(error).strip())
        return False
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    # From the last parameter on, as the backward pass goes.
    spoilt = [name for name in reversed(gradients) if not gradients[name].isfinite().all()]
    norm = float(torch.nn.utils.get_total_norm(list(gradients.values())))
    _line('backward', f'gradient norm {norm:.9g}; not finite: {_names(spoilt, "none")}')
    if watch.gradients:
        first = watch.gradients[0]
        _line(
            '', f'first, in the order of the backward pass: with respect to the output of {first}'
        )
    return not spoilt


class Watch:
    """Notes outputs of modules, and gradients with respect to them, that are not finite."""

    def __init__(self) -> None:
        self.outputs: list[str] = []  # in the order in which modules return
        self.gradients: list[str] = []  # in the order of the backward pass

    @contextmanager
    def forward_of(self, model: nn.Module) -> Iterator[None]:
        """Watch a forward pass, but not what a backward pass computes again."""
        handles = [
            module.register_forward_hook(partial(self._returned, name))
            for name, module in model.named_modules()
            if name  # what the model itself returns are the loss terms, and metrics of any value
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _returned(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        label = f'{name} ({type(module).__name__})'
        tensors = list(floating_tensors(output))
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(partial(self._gradient, label))
        if all(tensor.isfinite().all() for tensor in tensors):
            return
        given = all(tensor.isfinite().all() for tensor in floating_tensors(inputs))
        nan, inf = (
            sum(int(count(t).sum()) for t in tensors) for count in (torch.isnan, torch.isinf)
        )
        total = sum(tensor.numel() for tensor in tensors)
        self.outputs.append(
            f'{label}: {nan} NaN and {inf} infinite of {total} values; its inputs are '
            f'{"finite" if given else "not finite"}'
        )

    def _gradient(self, label: str, gradient: Tensor) -> None:
        if not gradient.isfinite().all():
            self.gradients.append(label)


def _line(title: str, text: str) -> None:
    print(f'{title:9}{text}', flush=True)


def _told(now: str, recorded: str) -> str:
    return now if now == recorded else f'{now} (recorded: {recorded}; numbers may differ)'


def _names(names: Sequence[str], none: str) -> str:
    more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
    return ', '.join(names[:_SHOWN]) + more if names else none
