"""What configs that fit themselves to a data set (``fit_config``) have in common."""

import difflib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from eva_mm.errors import UsageError

from .checkpoint import safe_load


class Option(NamedTuple):
    """A number under ``own_data``.

    Attributes:
        kind: ``int``, or ``float``, which takes whole numbers too.
        expected: what it has to be, in words.
        holds: tests that.
    """

    kind: type
    expected: str
    holds: Callable[[Any], bool]


SPLIT_OPTIONS = {
    'val_fraction': Option(float, 'a share between 0 and 1', lambda value: 0 < value < 1),
    'split_seed': Option(int, 'a whole number', lambda value: True),
}


def check_options(
    options: Mapping[str, Any], numbers: Mapping[str, Option], others: Collection[str]
) -> None:
    """Refuse numbers that would make another training than was meant, or none, and unknown keys.

    Args:
        options: ``own_data`` of the config.
        numbers: its numbers by name.
        others: its other keys, which are not looked at.

    Raises:
        UsageError: names the key, what was found and what was expected.
    """
    known = sorted({*numbers, *others})
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UsageError(
                f'own_data.{name} is no option'
                + (f'; own_data.{near[0]}?' if near else f'; there are {", ".join(known)}')
            )
    for name, (kind, expected, holds) in numbers.items():
        value = options[name]
        kinds = (int, float) if kind is float else int
        if isinstance(value, bool) or not isinstance(value, kinds) or not holds(value):
            raise UsageError(f'own_data.{name} should be {expected}, but got {value!r}')


def check_fitted(
    cfg: Config,
    root: Path,
    images_per_update: int,
    kept: Collection[str],
    purpose: str,
    origin: str,
) -> str | None:
    """Refuse what would fit a fitted config, as a training saves it, to something else.

    Args:
        cfg: with ``own_data.fitted_to`` and, from a training, ``fitted_length``, which notes
            another number of images per update for who resumes the run.
        root: the data set now.
        images_per_update: now.
        kept: dotted keys that the command line set.
        purpose: 'train', 'dry_run' or 'test'.
        origin: the config that it was made from, for messages.

    Returns:
        What to warn of, if the number of images per update is another.

    Raises:
        UsageError: another data set, or options that would do nothing.
    """
    before = cfg.own_data.fitted_to
    anew = f'start from the config that it was made from, as {origin}'
    if os.path.realpath(before) != os.path.realpath(root):
        raise UsageError(
            f'data_root={root}: {cfg.filename} is fitted to {before}; for other data {anew}'
        )
    if late := sorted(key for key in kept if key.split('.')[0] == 'own_data'):
        raise UsageError(
            f'{", ".join(late)}: {cfg.filename} is fitted to {root} already, so that this would '
            f'do nothing; leave it out, or {anew}'
        )
    length = cfg.get('fitted_length')
    if purpose == 'test' or length is None or length.images_per_update == images_per_update:
        return None
    fitted_for, length.images_per_update = length.images_per_update, images_per_update
    return (
        f'{cfg.filename}: learning rate and schedule are fitted to {fitted_for} images per update, '
        f'now it is {images_per_update}; to have them fitted anew {anew}'
    )


def read_meta(checkpoint: str | None) -> dict:
    """``meta`` of a checkpoint; empty where there is none, or no local file."""
    if not checkpoint or not os.path.isfile(checkpoint):
        return {}
    return safe_load(checkpoint, map_location='cpu', mmap=True).get('meta') or {}


def check_split(checkpoint: str | None, split: str | None) -> None:
    """Refuse to test on images that a checkpoint was trained on, as far as it tells.

    Args:
        checkpoint: to be tested.
        split: digest of how the images are split here; None where the data set has parts itself.

    Raises:
        UsageError: the checkpoint's ``fitted_length.split`` is another.
    """
    trained = (read_meta(checkpoint).get('fitted_length') or {}).get('split')
    if trained is not None and split is not None and trained != split:
        raise UsageError(
            f'{checkpoint} was trained on another split of the images (digest {trained}, here '
            f'{split}), so that some of these were trained on: test with the config that the '
            f'training saved beside it, or with its data and own_data options'
        )
