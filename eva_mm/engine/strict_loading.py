"""Weights that do not fit stop the run, with what is missing or unexpected on each side.

mmengine loads whatever fits and prints the rest as one long warning, so a detector may be tested
with half its weights random. Importing this module replaces the loader that all of mmengine's
ways go through (``load_from``, ``--resume``, ``Pretrained``, inferencers); it treats models that
are :class:`StrictLoading` as told there, and any other as before, unless all of its weights are
asked for (:func:`load_whole_checkpoint`).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from logging import WARNING
from typing import Any, NamedTuple

from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from eva_mm.errors import InputError

# Parameters of pretraining and classification that a backbone without those heads leaves aside.
PARTS_OF_OTHER_TASKS = (
    'cls_token',
    'mask_token',
    'lm_head.*',
    'decoder_*',
    'norm.*',
    'fc_norm.*',
    'head.*',
)
_SHOWN = 12  # lines per kind of mismatch
_lenient_load = mmengine_checkpoint.load_state_dict
# Tensor -> file it was read from: tensors outlive the copies of dictionaries on their way here.
_SOURCES: WeakIdKeyDictionary = WeakIdKeyDictionary()


class CheckpointMismatchError(InputError):
    """A checkpoint and a model differ in more than was allowed."""


class StrictLoading:
    """Mixin of models that refuse a checkpoint which does not fit; stands before ``nn.Module``.

    Patterns are those of :mod:`fnmatch`, where ``*`` matches dots too; names are the model's own,
    without a prefix.

    Args:
        allowed_missing: parameters and buffers that may keep their initial values because the
            checkpoint lacks them or has them in another shape.
        allowed_unexpected: what the checkpoint may hold besides.

    Attributes:
        may_be_missing: patterns that hold for every model of the class.
        may_be_unexpected: the same of the checkpoint's other names.
    """

    may_be_missing: tuple[str, ...] = ()
    may_be_unexpected: tuple[str, ...] = ()

    def __init__(
        self,
        *args: Any,
        allowed_missing: Sequence[str] = (),
        allowed_unexpected: Sequence[str] = (),
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.allowed_missing = tuple(allowed_missing)
        self.allowed_unexpected = tuple(allowed_unexpected)

    def has_initial_weights(self) -> bool:
        """Whether what a checkpoint lacks holds a proper initialisation, and may be trained."""
        return True


class Mismatch(NamedTuple):
    """Differences between a model and a state dict.

    Attributes:
        missing: names of the model that the state dict lacks.
        unexpected: names of the state dict that the model lacks.
        misshapen: name -> shape in the model, shape in the state dict.
    """

    missing: list[str]
    unexpected: list[str]
    misshapen: dict[str, tuple[tuple, tuple]]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def without(self, missing: Sequence[str], unexpected: Sequence[str]) -> Mismatch:
        """What remains when the names that match the patterns are allowed."""
        return Mismatch(
            [name for name in self.missing if not _matches(name, missing)],
            [name for name in self.unexpected if not _matches(name, unexpected)],
            {k: v for k, v in self.misshapen.items() if not _matches(k, missing)},
        )

    def report(self) -> str:
        """Indented lines; names that differ in numbers or in the last part share one."""
        lines = []
        for title, names in (
            ('missing in the checkpoint', self.missing),
            ('unknown to the model', self.unexpected),
        ):
            if names:
                lines += _section(f'{title} ({len(names)})', compact(names))
        if self.misshapen:
            by_shape: dict[tuple, list[str]] = {}
            for name, shapes in self.misshapen.items():
                by_shape.setdefault(shapes, []).append(name)
            rows = [
                f'{text}: model {_shape(ours)}, checkpoint {_shape(theirs)}'
                for (ours, theirs), names in by_shape.items()
                for text in compact(names)
            ]
            lines += _section(f'of another shape ({len(self.misshapen)})', rows)
        return '\n'.join(lines)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _section(title: str, rows: list[str]) -> list[str]:
    more = [f'    ... and {len(rows) - _SHOWN} more lines'] if len(rows) > _SHOWN else []
    return [f'  {title}:', *(f'    {row}' for row in rows[:_SHOWN]), *more]


def _shape(shape: tuple) -> str:
    return ' x '.join(map(str, shape)) or 'a number'


def compact(names: Iterable[str]) -> list[str]:
    """Fold names that differ in numbers, or in their last part, into one line each.

    Examples:
        >>> compact(['b.0.fc.weight', 'b.0.fc.bias', 'b.1.fc.weight', 'b.1.fc.bias', 'head'])
        ['b.{0-1}.fc.{bias,weight}', 'head']
    """
    by_template: dict[str, list[list[int]]] = {}
    for name in names:
        numbers = [int(n) for n in re.findall(r'\d+', name)]
        by_template.setdefault(re.sub(r'\d+', '#', name), []).append(numbers)
    by_parent: dict[str, list[str]] = {}
    for template, rows in by_template.items():
        folded = iter([_ranges(sorted(set(column))) for column in zip(*rows)])
        text = re.sub('#', lambda _, folded=folded: next(folded), template)
        parent, _, last = text.rpartition('.')
        by_parent.setdefault(parent, []).append(last)
    lines = []
    for parent, lasts in by_parent.items():
        last = lasts[0] if len(lasts) == 1 else '{' + ','.join(sorted(lasts)) + '}'
        lines.append(f'{parent}.{last}' if parent else last)
    return lines


def _ranges(numbers: list[int]) -> str:
    """[3] -> '3'; [0, 1, 2, 5] -> '{0-2,5}'."""
    if len(numbers) == 1:
        return str(numbers[0])
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return '{' + ','.join(str(a) if a == b else f'{a}-{b}' for a, b in runs) + '}'


def remember_source(state_dict: Mapping[str, Any], name: str) -> None:
    """Note which file the tensors of a state dict were read from."""
    for value in state_dict.values():
        if isinstance(value, Tensor):
            _SOURCES[value] = name


def source_of(state_dict: Mapping[str, Any]) -> str:
    """File that a state dict was read from, as far as known."""
    values = (value for value in state_dict.values() if isinstance(value, Tensor))
    return next((_SOURCES[value] for value in values if value in _SOURCES), 'the checkpoint')


def load_state_dict(
    module: nn.Module, state_dict: Mapping[str, Any], strict: bool = False, logger: Any = None
) -> None:
    """Load weights; stands in for :func:`mmengine.runner.checkpoint.load_state_dict`.

    Args:
        module: the model, bare or wrapped.
        state_dict: name -> tensor, under published or own names.
        strict: refuse even what the model allows, and in any other model every difference but
            those of its :class:`StrictLoading` parts and of counters.
        logger: as of mmengine; what was allowed is reported there.

    Raises:
        CheckpointMismatchError: a :class:`StrictLoading` model and the weights differ in more
            than it allows, or ``strict`` and any other model.
    """
    model = module
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    if not isinstance(model, StrictLoading):
        if strict:
            _load_whole(model, state_dict)
        else:
            _lenient_load(module, state_dict, strict, logger)
        return
    differences = _load_and_compare(model, state_dict)
    missing, unexpected = model.may_be_missing, model.may_be_unexpected
    if not strict:
        unexpected = (*unexpected, *model.allowed_unexpected)
        if model.has_initial_weights():
            missing = (*missing, *model.allowed_missing)
    where = f'{type(model).__name__} and {source_of(state_dict)}'
    if refused := differences.without(missing, unexpected):
        raise CheckpointMismatchError(f'{where} do not fit\n{refused.report()}\n{_remedy(model)}')
    # What the class allows is normal; what this config allows is worth a look.
    if shown := differences.without(model.may_be_missing, model.may_be_unexpected):
        text = f'{where} differ as the config allows\n{shown.report()}'
        print_log(text, logger=logger, level=WARNING)


def _remedy(model: StrictLoading) -> str:
    text = (
        'Is it the checkpoint of another size, class list or layout? What may differ goes into '
        "the model's allowed_missing or allowed_unexpected."
    )
    if model.allowed_missing and not model.has_initial_weights():
        text += ' (allowed_missing holds in training only, not in tests and inference.)'
    return text


def _load_and_compare(model: nn.Module, state_dict: Mapping[str, Any]) -> Mismatch:
    """Load what fits. Names and shapes are compared after the model's own renaming and resizing."""
    values = OrderedDict(state_dict)
    metadata = getattr(state_dict, '_metadata', None) or {}
    unused: tuple[list[str], ...] = ([], [], [])

    def load(part: nn.Module, prefix: str) -> None:
        # One dictionary for all parts, so that what each renames and resizes is seen below.
        part._load_from_state_dict(values, prefix, metadata.get(prefix[:-1], {}), False, *unused)
        for name, child in part._modules.items():
            if child is not None:
                load(child, f'{prefix}{name}.')
        for hook in part._load_state_dict_post_hooks.values():
            hook(part, mmengine_checkpoint._IncompatibleKeys([], []))

    load(model, '')
    # Shapes are told below; the rest, values that are no tensors say, torch passes over.
    if failed := [text for text in unused[2] if 'size mismatch' not in text]:
        raise CheckpointMismatchError(
            f'{source_of(values)}: {len(failed)} values cannot be copied, first: {failed[0]}'
        )
    own = model.state_dict()
    return Mismatch(
        [k for k in own if k not in values and not k.endswith('num_batches_tracked')],
        [k for k in values if k not in own],
        {
            k: (tuple(own[k].shape), tuple(v.shape))
            for k, v in values.items()
            if k in own and isinstance(v, Tensor) and v.shape != own[k].shape
        },
    )


def _load_whole(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load a model that is no :class:`StrictLoading`, and refuse what differs."""
    parts = [(f'{name}.', m) for name, m in model.named_modules() if isinstance(m, StrictLoading)]
    missing = [prefix + pattern for prefix, part in parts for pattern in part.may_be_missing]
    unexpected = [prefix + pattern for prefix, part in parts for pattern in part.may_be_unexpected]
    differences = _load_and_compare(model, state_dict)
    # Tables of indices are computed by the model, and versions of a host differ in which they save.
    missing += [
        name for name in differences.missing if not model.state_dict()[name].is_floating_point()
    ]
    unexpected += [
        name
        for name in differences.unexpected
        if isinstance(state_dict.get(name), Tensor) and not state_dict[name].is_floating_point()
    ]
    if refused := differences.without(missing, unexpected):
        raise CheckpointMismatchError(
            f'{type(model).__name__} and {source_of(state_dict)} do not fit\n{refused.report()}\n'
            f'Is it the checkpoint of another config?'
        )


def load_whole_checkpoint(model: nn.Module, path: str) -> dict:
    """Load all weights of a model that is to be used, not trained further; of any task.

    Args:
        model: a :class:`StrictLoading`, whose own allowances hold, or any other.
        path: file, URL or ``eva://`` name.

    Returns:
        dict: The checkpoint, on the CPU.

    Raises:
        CheckpointMismatchError: weights are missing, unexpected or of another shape; tables of
            integers and counters aside.
    """
    strict = not isinstance(model, StrictLoading)
    return mmengine_checkpoint.load_checkpoint(
        model, path, map_location='cpu', strict=strict, logger='silent'
    )


mmengine_checkpoint.load_state_dict = load_state_dict
