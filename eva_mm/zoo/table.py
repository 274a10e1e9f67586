"""Table of the published checkpoints, read from models.yml."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import yaml

from eva_mm.errors import InputError, MissingFileError, UnreadableFileError

REPOSITORY = 'BAAI/EVA'
SCHEME = 'eva://'
MODELS_FILE = Path(__file__).with_name('models.yml')

TASKS = {
    'pretrain': 'Pretraining',
    'imagenet': 'ImageNet classification',
    'clip': 'EVA-CLIP: images and texts',
    'detection': 'Detection and instance segmentation',
    'segmentation': 'Semantic segmentation',
    'video': 'Video classification',
}
"""Tasks in the order of their tables, with headings."""

CORE_KINDS = ('mim', 'mae', 'classifier', 'linear', 'clip', 'clip_vision')
"""Kinds whose image encoder :class:`eva_mm.vit.EVAVisionTransformer` holds."""

KINDS = (*CORE_KINDS, 'detector', 'segmentor', 'video', 'data')
"""How a file's parameters are named; 'data' has none."""


@dataclass(frozen=True)
class PublishedModel:
    """A file of the authors' repository, https://huggingface.co/BAAI/EVA.

    Attributes:
        name: what users write, ``eva://NAME``.
        file: name in the hub's repository.
        task: a key of :data:`TASKS`.
        kind: one of :data:`KINDS`: 'mim' (EVA-g pretraining), 'mae' (EVA-L pretraining),
            'classifier', 'linear' (linear probe), 'clip' (both encoders), 'clip_vision',
            'detector', 'segmentor', 'video', 'data' (no weights).
        description: what to take it for, one line.
        licence: of the file.
        params: exact number of parameters; None where no training log states it.
        params_counted: what ``params`` counts: 'all', or 'trained' for those that were trained.
        params_stated: the number as the authors round it, e.g. ``'1.0B'``.
        size: of the file as stated, e.g. ``'4GB'``.
        metrics: published results in percent, e.g. ``{'IN-1K top-1': 89.6}``.
        inner_key: key of the weights inside the file; None where it is found when read.
        dtype: 'fp16' or 'fp32'; None where it is not stated.
        config: path of the config that trains it, relative to the repository; it exists as soon
            as its folder does.
        test_config: path of the config that tests it as published, where that is another one.
        init_from: name of the row that it was trained from; None if from scratch or not stated.
        dataset: dotted class whose ``METAINFO['classes']`` are its outputs in order; None where
            the order is not known.
        model: arguments of :class:`eva_mm.vit.EVAVisionTransformer`, for :data:`CORE_KINDS`.
        preprocessing: of evaluation: ``size`` in pixels, ``crop_pct`` (the shorter side is resized
            to size / crop_pct before the centre crop), ``mean`` and ``std`` (RGB, of values in
            [0, 1]), ``interpolation``.
        note: what else one should know; empty if nothing.
    """

    name: str
    file: str
    task: str
    kind: str
    description: str
    licence: str
    params: int | None = None
    params_counted: str = 'all'
    params_stated: str | None = None
    size: str | None = None
    metrics: dict = field(default_factory=dict, hash=False)
    inner_key: str | None = None
    dtype: str | None = None
    config: str | None = None
    test_config: str | None = None
    init_from: str | None = None
    dataset: str | None = None
    model: dict = field(default_factory=dict, hash=False)
    preprocessing: dict = field(default_factory=dict, hash=False)
    note: str = ''


@dataclass(frozen=True)
class Job:
    """Something a reader wants to do.

    Attributes:
        job: what.
        take: names of the checkpoints for it, the usual choice first.
        why: what tells them apart from others, or from each other.
    """

    job: str
    take: list
    why: str


class Table(NamedTuple):
    """All of models.yml."""

    models: dict[str, PublishedModel]
    jobs: tuple[Job, ...]


CHOICES = {
    'task': tuple(TASKS),
    'kind': KINDS,
    'params_counted': ('all', 'trained'),
    'dtype': ('fp16', 'fp32', None),
}
_TOP_KEYS = {'licence', 'preprocessing', 'jobs', 'models'}


def read_table(path: str | os.PathLike = MODELS_FILE) -> Table:
    """Read and check a table of checkpoints.

    Args:
        path: a YAML file of the form of ``models.yml``, which explains its keys.

    Raises:
        MissingFileError: no such file.
        UnreadableFileError: not a YAML file.
        InputError: a key is unknown or missing, a value has a wrong type or is none of the
            allowed ones, a name or file stands twice, or a reference leads nowhere. Row and key
            are named.
    """
    content = _read_yaml(Path(path))
    if not isinstance(content, dict) or set(content) != _TOP_KEYS:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise InputError(f'{path}: expected the keys {sorted(_TOP_KEYS)}, found {found}')
    models: dict[str, PublishedModel] = {}
    for number, row in enumerate(_rows(content, 'models', path), start=1):
        name = row.get('name', f'number {number}') if isinstance(row, dict) else f'number {number}'
        model = _make(PublishedModel, row, f'{path}: model {name}', licence=content['licence'])
        if model.name in models:
            raise InputError(f'{path}: model {model.name}: name stands twice')
        models[model.name] = model
    jobs = tuple(
        _make(Job, row, f'{path}: job number {number}')
        for number, row in enumerate(_rows(content, 'jobs', path), start=1)
    )
    _check_files(models, path)
    _check_references(models, jobs, path)
    return Table(models, jobs)


@functools.cache
def _published() -> Table:
    return read_table()


def published_models() -> dict[str, PublishedModel]:
    """All published files by name, in the order of the tables."""
    return dict(_published().models)


def published_jobs() -> tuple[Job, ...]:
    """Which file to take for which job."""
    return _published().jobs


def find_model(name: str) -> PublishedModel:
    """Row of a published file.

    Args:
        name: the row's name, the file's name, or that without its ending; each with or without
            ``eva://``.

    Raises:
        InputError: no file has that name; near ones are told.
    """
    key = name.removeprefix(SCHEME)
    rows = _by_any_name()
    if key in rows:
        return rows[key]
    near = difflib.get_close_matches(key.lower(), rows, n=6, cutoff=0.7)
    near = list(dict.fromkeys(rows[match].name for match in near))[:3]
    guess = f'did you mean {" or ".join(near)}?' if near else "expected a name such as 'eva_lvis'."
    raise InputError(
        f'unknown checkpoint {name!r}, {guess} '
        'All names: python tools/download.py --list, or model_zoo.md'
    )


def suggest_scheme(path: str) -> str:
    """What to add to a message that a file is not there, if a published name was meant."""
    known = '://' not in path and path in _by_any_name()
    return f'; the published one is {SCHEME}{_by_any_name()[path].name}' if known else ''


@functools.cache
def _by_any_name() -> dict[str, PublishedModel]:
    """Rows by name, file, and file without ending; a name goes before another row's file."""
    models = _published().models.values()
    files = {key: m for m in models for key in (m.file, Path(m.file).stem)}
    return {**files, **{m.name: m for m in models}}


# --------------------------------------------------------------------------------- validation


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise MissingFileError(f'{path} does not exist') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = ' '.join(str(error).split())
        raise UnreadableFileError(f'{path} is no YAML file: {text}') from error


def _rows(content: Mapping, key: str, path: str | os.PathLike) -> list:
    if not isinstance(content[key], list):
        raise InputError(f'{path}: {key!r} should be a list, found {type(content[key]).__name__}')
    return content[key]


def _make(kind: type, row: Any, where: str, **defaults: Any) -> Any:
    """Build a dataclass from a row, after checking its keys, types and choices."""
    if not isinstance(row, dict):
        raise InputError(f'{where}: expected keys and values, found {row!r}')
    row = {**defaults, **row}
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in row:
        if key not in fields:
            raise InputError(f'{where}: unknown key {key!r}, expected one of {sorted(fields)}')
    needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(needed - set(row)):
        raise InputError(f'{where}: key {missing[0]!r} is missing')
    hints = get_type_hints(kind)
    for key, value in row.items():
        if not isinstance(value, hints[key]) or isinstance(value, bool):
            expected = getattr(hints[key], '__name__', hints[key])
            raise InputError(f'{where}: key {key!r} should be {expected}, found {value!r}')
        if key in CHOICES and value not in CHOICES[key]:
            raise InputError(
                f'{where}: key {key!r} should be one of {CHOICES[key]}, found {value!r}'
            )
    return kind(**row)


def _check_files(models: Mapping[str, PublishedModel], path: str | os.PathLike) -> None:
    owners: dict[str, str] = {}
    for model in models.values():
        first = owners.setdefault(model.file, model.name)
        if first != model.name:
            raise InputError(f"{path}: model {model.name}: key 'file' is that of model {first}")
        if bool(model.model) != (model.kind in CORE_KINDS):
            fault = 'superfluous' if model.model else 'missing'
            raise InputError(
                f"{path}: model {model.name}: key 'model' is {fault} for kind {model.kind!r}"
            )


def _check_references(
    models: Mapping[str, PublishedModel], jobs: tuple[Job, ...], path: str | os.PathLike
) -> None:
    references = [(f"model {m.name}: key 'init_from'", m.init_from) for m in models.values()]
    references += [(f"job {job.job!r}: key 'take'", name) for job in jobs for name in job.take]
    for where, name in references:
        if name is not None and name not in models:
            raise InputError(f'{path}: {where} names {name!r}, which is no model of this table')
