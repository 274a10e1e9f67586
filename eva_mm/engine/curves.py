"""Curves of training runs from the scalars that they log."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from eva_mm.errors import InputError, MissingFileError

from .saving import write_whole

Curve = dict[int, float]
"""Iteration -> value."""

# The end of the metrics that are drawn when none are named; their splits by size would crowd it.
MAIN_METRICS = ('AP', 'mAP', 'mIoU', 'accuracy', 'top1')


def read_curves(run: str | os.PathLike) -> dict[str, Curve]:
    """Read what a run logged, stretches before and after a resume joined.

    Args:
        run: Work dir (with ``<timestamp>/vis_data/scalars.json`` of every start) or one such file.

    Returns:
        Name of a scalar -> its values by iteration. Where two stretches overlap, as after resuming
        from a checkpoint older than the log, the later one holds. -1, the metrics' sign for
        nothing annotated, is left out.

    Raises:
        InputError: There is no such log, or a line of it is no JSON object. Blank lines and a last
            line that is not complete, as of a run that goes on or was killed, are passed over.
    """
    run = Path(run)
    files = [run] if run.is_file() else sorted(run.glob('*/vis_data/scalars.json'))
    if not files:
        raise MissingFileError(f'{run}: expected a scalars.json or a work dir of a training run')
    curves: dict[str, Curve] = defaultdict(dict)
    for file in files:
        stretch = _read_stretch(file)
        if not stretch:
            continue
        trained = [step for name, curve in stretch.items() if '/' not in name for step in curve]
        first = min(trained, default=math.inf)
        for curve in curves.values():
            for step in [step for step in curve if step >= first]:
                del curve[step]
        for name, curve in stretch.items():
            curves[name].update(curve)
    return {name: dict(sorted(curve.items())) for name, curve in curves.items() if curve}


def _read_stretch(file: Path) -> dict[str, Curve]:
    """Curves of one log file."""
    curves: dict[str, Curve] = defaultdict(dict)
    last = 0
    lines = file.read_text(errors='replace').split('\n')
    for number, line in enumerate(lines, start=1):
        # A last line without its line feed is being written, or never was to its end.
        if not line.strip() or (number == len(lines) and not line.rstrip().endswith('}')):
            continue
        try:
            record = json.loads(line)
            # mmengine may number evaluations by epochs, which runs by iteration count none of.
            step = last = max(record.pop('step'), last)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f'{file}, line {number}: expected a JSON object with step, found {line:.60}'
            ) from error
        for name, value in record.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and not ('/' in name and value == -1):
                curves[name][step] = value
    return curves


def choose_scalars(runs: Iterable[Mapping[str, Curve]]) -> list[str]:
    """Loss, learning rate and the main metrics of runs, in this order."""
    names = sorted({name for run in runs for name in run})
    metrics = [n for n in names if '/' in n and n.replace('/', '_').split('_')[-1] in MAIN_METRICS]
    return [name for name in ('loss', 'lr') if name in names] + metrics


def draw_curves(
    runs: Mapping[str, Mapping[str, Curve]],
    out: str | os.PathLike,
    names: Sequence[str] | None = None,
) -> Path:
    """Draw runs into one picture: a panel per training scalar, and one of all metrics.

    Args:
        runs: Title of a run -> its curves by :func:`read_curves`.
        out: PNG to write.
        names: Scalars to draw; by default those of :func:`choose_scalars`.

    Returns:
        The file.

    Raises:
        InputError: A scalar that no run logged (lists those that some did), or nothing to draw.
    """
    known = sorted({name for run in runs.values() for name in run})
    names = list(names or choose_scalars(runs.values()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise InputError(f'no run logged {unknown or "loss, lr or metrics"}; logged are {known}')
    panels = {name: [name] for name in names if '/' not in name}
    if metrics := [name for name in names if '/' in name]:
        panels['metrics'] = metrics
    figure = new_figure(5.5 * len(panels), 4)
    for axes, (title, scalars) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items()
    ):
        _draw_panel(axes, title, scalars, runs)
    return write_figure(figure, Path(out))


def _draw_panel(axes, title: str, scalars: Sequence[str], runs: Mapping) -> None:
    for run, curves in runs.items():
        for name in scalars:
            if name in curves:
                label = name if len(runs) == 1 else f'{run}: {name}' if '/' in name else run
                few = len(curves[name]) < 40  # evaluations, or a short run
                marker = '.' if few else None
                axes.plot(*zip(*curves[name].items()), label=plain_text(label), marker=marker)
    axes.set(title=plain_text(title), xlabel='iteration')
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1:
        axes.legend(fontsize='small')


def new_figure(width: float, height: float):
    """An empty figure of a size in inches, without pyplot, which would ask for a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def plain_text(text: str) -> str:
    """A name as matplotlib shows it; two dollar signs would be a formula."""
    return text.replace('$', r'\$')


def write_figure(figure, out: Path) -> Path:
    """Write a figure as PNG, whole or not at all."""
    write_whole(str(out), lambda file: figure.savefig(file, format='png', dpi=110))
    return out
