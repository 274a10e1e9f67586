"""Mean of several checkpoints of one model ("model soup", arXiv 2203.05482)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from eva_mm.errors import InputError

from .convert import Weights, cast_tensor, require_one_of
from .files import DTYPES, dataset_meta, pack, read_weights, require_writable, write_checkpoint

_SHOWN = 8  # names per list


def average(
    state_dicts: Mapping[str, Mapping[str, Tensor]], dtype: torch.dtype | None = None
) -> Weights:
    """Mean of floating-point tensors; others (counters) are those of the last.

    Args:
        state_dicts: name of a file -> its names and tensors; sums are in float64, tensor by
            tensor, so that tensors may lie on the disk.
        dtype: of the result's floating-point tensors; by default that of the last.

    Returns:
        Names and tensors in the last one's order.

    Raises:
        InputError: fewer than two are given, they differ in names or shapes, or a mean is beyond
            the range of ``dtype``.
    """
    if len(state_dicts) < 2:
        raise InputError(f'averaging needs two files or more, got {len(state_dicts)}')
    *others, last = state_dicts
    for other in others:
        _require_same(last, state_dicts[last], other, state_dicts[other])
    return {
        name: _mean(name, [state[name] for state in state_dicts.values()], dtype)
        for name in state_dicts[last]
    }


def _mean(name: str, tensors: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
    last = tensors[-1]
    if not last.is_floating_point():
        return last.detach()
    total = torch.zeros(last.shape, dtype=torch.float64)
    for tensor in tensors:
        total += tensor.detach()
    return cast_tensor(name, total / len(tensors), dtype or last.dtype)


def _require_same(
    name: str, state: Mapping[str, Tensor], other_name: str, other: Mapping[str, Tensor]
) -> None:
    """Refuse two state dicts that differ in names or shapes."""
    for here, there, one, two in (
        (name, other_name, state, other),
        (other_name, name, other, state),
    ):
        if lacking := [key for key in one if key not in two]:
            shown = ', '.join(lacking[:_SHOWN])
            raise InputError(f'{there} lacks {len(lacking)} of the names in {here}: {shown}')
    different = [key for key in state if state[key].shape != other[key].shape]
    if different:
        rows = (
            f'  {key}: {tuple(other[key].shape)} and {tuple(state[key].shape)}'
            for key in different[:_SHOWN]
        )
        raise InputError(
            f'{other_name} and {name} differ in {len(different)} shapes:\n' + '\n'.join(rows)
        )


def average_files(
    out: str | os.PathLike,
    files: Sequence[str | os.PathLike],
    dtype: str | None = None,
    force: bool = False,
) -> int:
    """Write the mean of checkpoints; what ``tools/average_checkpoints.py`` does.

    The result has the last file's class names (``meta.dataset_meta``), and its layout: weights
    under ``model`` where they lie there, else under ``state_dict``.

    Args:
        out: file to write; as safetensors where it ends so.
        files: two or more, of one model.
        dtype: a key of :data:`eva_mm.zoo.files.DTYPES`; by default that of the last file.
        force: replace ``out`` where it exists.

    Returns:
        Number of tensors averaged.

    Raises:
        InputError: a file cannot be read or written, or see :func:`average`.
    """
    require_one_of('dtype', dtype, DTYPES)
    safetensors = str(out).endswith('.safetensors')
    require_writable(out, force, safetensors)
    names = [os.fspath(file) for file in files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f'{sorted(twice)[0]} is given twice')
    states, last = {}, {}
    for name in names:
        states[name], last = read_weights(name)
    weights = average(states, DTYPES[dtype] if dtype else None)
    layout = 'official' if isinstance(last.get('model'), dict) else 'mm'
    write_checkpoint(
        pack(weights, 'safetensors' if safetensors else layout, dataset_meta(last)), out
    )
    return sum(tensor.is_floating_point() for tensor in weights.values())
