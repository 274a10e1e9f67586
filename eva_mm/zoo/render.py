"""The table of published checkpoints as text: model_zoo.md, and the list on the terminal."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from eva_mm.errors import InputError

from .table import (
    CORE_KINDS,
    REPOSITORY,
    TASKS,
    Job,
    PublishedModel,
    published_jobs,
    published_models,
)

BLOB = f'https://huggingface.co/{REPOSITORY}/blob/main/'
LIST_WIDTH = 120  # characters
LIST_METRICS = 2  # results shown of each

_OPENING = """\
# Model zoo

<!-- Written by `python tools/render_zoo.py` from eva_mm/zoo/models.yml; edit that file. -->

Every EVA-01 checkpoint that the authors published, under one name. The files lie at
[{repository}](https://huggingface.co/{repository}) on the Hugging Face hub, licence {licence}, and
are downloaded when a name is first used.

| where | how |
|---|---|
| in a config | `load_from = 'eva://eva_lvis'` |
| in a config, for the backbone alone | `init_cfg=dict(type='Pretrained', \
checkpoint='eva://eva_psz14to16')` |
| in a test | `python tools/test.py configs/lvis/eva_cascade_1536_test.py eva://eva_lvis` |
| in Python, without a config | \
`module, preprocess = eva_mm.zoo.load_model('eva_21k_1k_336px')` |
| to have the file | `python tools/download.py eva_lvis` |
| to see the names | `python tools/download.py --list` |

The file's own name, with or without its ending, is accepted as well. All numbers below are the
authors' published ones; none was measured here.
"""

_READING = """\
## All files

*Parameters*: with all digits where a training log states them, else as the authors round them.
*Published*: results in percent, from the authors' READMEs unless a footnote says otherwise.
*In the file*: type of the weights, and the key under which they lie where the authors' code tells
it; other keys are found when the file is read. *Config*: the run here that trains the checkpoint,
and the one that tests it as published; a planned one is named without a link. A dash: not stated,
or there is none.
"""


def render(root: str | os.PathLike) -> str:
    """Text of model_zoo.md.

    Args:
        root: the repository; which configs get links follows from its ``configs/``.
    """
    models = published_models()
    parts = [
        _OPENING.format(repository=REPOSITORY, licence=_licences(models.values())),
        '## Which file for which job\n',
        _jobs_table(published_jobs(), models, Path(root)),
        _READING,
    ]
    for task in TASKS:
        rows = [model for model in models.values() if model.task == task]
        parts.append(_task_section(task, rows, Path(root)))
    return '\n'.join(parts)


def write(path: str | os.PathLike, text: str) -> None:
    """Write a text file, whole or not at all."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)


def is_stale(path: str | os.PathLike, text: str) -> bool:
    """Whether a file is missing or holds anything else than ``text``."""
    path = Path(path)
    return not path.is_file() or path.read_text(encoding='utf-8') != text


def format_list(models: Mapping[str, PublishedModel], task: str | None = None) -> str:
    """Aligned columns for the terminal: name, size, what for; grouped by task.

    Args:
        models: by name, as :func:`eva_mm.zoo.table.published_models` gives them.
        task: one of :data:`eva_mm.zoo.table.TASKS`; None shows all.

    Returns:
        Lines of at most :data:`LIST_WIDTH` characters.

    Raises:
        InputError: unknown task.
    """
    if task is not None and task not in TASKS:
        raise InputError(f'unknown task {task!r}, expected one of {", ".join(TASKS)}')
    shown = [model for model in models.values() if task in (None, model.task)]
    width = max((len(model.name) for model in shown), default=0)
    blocks = []
    for key in TASKS:
        lines = [line for m in shown if m.task == key for line in _list_lines(m, width)]
        if lines:
            blocks.append('\n'.join([f'{TASKS[key]} (--task {key})', *lines]))
    return '\n\n'.join(
        [*blocks, 'Size: as published, - where it is not. In brackets: published results.']
    )


# ----------------------------------------------------------------------------------- terminal


def _list_lines(model: PublishedModel, width: int) -> list[str]:
    best = list(model.metrics.items())[:LIST_METRICS]
    results = f' [{", ".join(f"{value} {label}" for label, value in best)}]' if best else ''
    start = f'  {model.name:<{width}}  {model.size or "-":>5}  '
    return textwrap.wrap(
        model.description + results,
        LIST_WIDTH,
        initial_indent=start,
        subsequent_indent=' ' * len(start),
        break_on_hyphens=False,
    )


# ----------------------------------------------------------------------------------- Markdown


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _licences(models: Iterable[PublishedModel]) -> str:
    return ', '.join(dict.fromkeys(model.licence for model in models))


def _jobs_table(jobs: Iterable[Job], models: Mapping[str, PublishedModel], root: Path) -> str:
    unusable = {
        model.task for model in models.values() if model.kind not in CORE_KINDS
    } - _built_tasks(models.values(), root)
    return _markdown_table(
        ['you want to', 'take', 'because'],
        [
            [
                job.job[0].lower() + job.job[1:],
                ', '.join(f'[`{name}`](#{_anchor(models[name].task)})' for name in job.take)
                + (' (its configs are planned)' if models[job.take[0]].task in unusable else ''),
                job.why,
            ]
            for job in jobs
        ],
    )


def _built_tasks(models: Iterable[PublishedModel], root: Path) -> set[str]:
    """Tasks of which a config exists."""
    return {m.task for m in models if m.config and (root / m.config).is_file()}


def _anchor(task: str) -> str:
    """GitHub's anchor of a task's heading."""
    kept = ''.join(c for c in TASKS[task].lower() if c.isalnum() or c in ' -')
    return kept.replace(' ', '-')


def _task_section(task: str, models: Sequence[PublishedModel], root: Path) -> str:
    notes = list(dict.fromkeys(model.note for model in models if model.note))
    header = 'name', 'what for', 'parameters', 'size', 'published', 'in the file', 'trained from'
    rows = []
    for model in models:
        mark = f' <sup>{notes.index(model.note) + 1}</sup>' if model.note else ''
        rows.append(
            [
                f'[`{model.name}`]({BLOB}{quote(model.file)}){mark}',
                model.description,
                _parameters(model),
                model.size or '–',
                _metrics(model),
                _inside(model),
                f'`{model.init_from}`' if model.init_from else '–',
                _configs(model, root),
            ]
        )
    text = f'### {TASKS[task]}\n\n' + _markdown_table([*header, 'config'], rows)
    if notes:
        text += '\n' + ''.join(f'{number}. {note}\n' for number, note in enumerate(notes, start=1))
    return text


def _metrics(model: PublishedModel) -> str:
    return '<br>'.join(f'{value} {label}' for label, value in model.metrics.items()) or '–'


def _parameters(model: PublishedModel) -> str:
    if model.params is None:
        return model.params_stated or '–'
    return f'{model.params:,}' + (' trained' if model.params_counted == 'trained' else '')


def _inside(model: PublishedModel) -> str:
    key = model.inner_key and f'`{model.inner_key}`'
    return ', '.join(part for part in (model.dtype, key) if part) or '–'


def _configs(model: PublishedModel, root: Path) -> str:
    parts = [
        _config(label, path, root)
        for label, path in (('train', model.config), ('test', model.test_config))
        if path
    ]
    return '<br>'.join(parts) or '–'


def _config(label: str, path: str, root: Path) -> str:
    return f'[{label}]({path})' if (root / path).is_file() else f'planned: `{path}`'
