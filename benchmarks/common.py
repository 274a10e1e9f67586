"""What every benchmark shares: its registration, its table, where the table is kept.

A benchmark is a module of this package with a function :func:`benchmark` decorates; it prints
nothing itself and returns tables. What it needs beyond PyTorch and the core is imported inside
functions, so that ``--list`` and the core's benchmarks run where no OpenMMLab package is.
"""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).with_name('RESULTS.md')
MIB, GIB = 2**20, 2**30


@dataclass
class Table:
    """Figures of one benchmark.

    Attributes:
        header: names of the columns, with their units.
        rows: one sequence of cells per row; anything that prints.
        title: what the table shows.
        notes: sentences that say what was run and what the figures leave out.
        packages: distributions whose versions matter beside PyTorch's.
    """

    header: Sequence[str]
    rows: list[Sequence]
    title: str = ''
    notes: Sequence[str] = ()
    packages: Sequence[str] = ()

    def markdown(self) -> str:
        """The table, with columns aligned, and its notes."""
        cells = [[str(cell) for cell in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = [' | '.join(c.ljust(w) for c, w in zip(row, widths)) for row in cells]
        lines.insert(1, ' | '.join('-' * width for width in widths))
        text = '\n'.join(f'| {line} |' for line in lines)
        title = f'**{self.title}**\n\n' if self.title else ''
        notes = ''.join(f'\n* {note}' for note in self.notes)
        return f'{title}{text}\n{notes and chr(10) + notes.lstrip(chr(10)) + chr(10)}'


@dataclass(frozen=True)
class Benchmark:
    """A registered benchmark: ``run(**options)`` returns its tables."""

    name: str
    summary: str
    run: Callable[..., list[Table]]
    options: dict[str, type] = field(default_factory=dict)


REGISTRY: dict[str, Benchmark] = {}


def benchmark(name: str, summary: str, **options: type) -> Callable:
    """Register a function under a name.

    Args:
        name: for the command line.
        summary: one line for ``--list``.
        **options: keyword arguments of the function that ``--set KEY=VALUE`` may give, each with
            the function that reads its text.
    """

    def register(run: Callable[..., list[Table]]) -> Callable[..., list[Table]]:
        if name in REGISTRY:
            raise ValueError(f'there are two benchmarks {name!r}')
        REGISTRY[name] = Benchmark(name, summary, run, options)
        return run

    return register


def read_names(text: str) -> tuple[str, ...]:
    """``'base,giant'`` of a command line."""
    return tuple(text.split(','))


def read_sizes(text: str) -> tuple[str, ...]:
    """Names of :data:`eva_mm.vit.SIZES`.

    Raises:
        ValueError: another one.
    """
    from eva_mm.vit import get_size

    names = read_names(text)
    for name in names:
        get_size(name)
    return names


def read_numbers(text: str) -> tuple[int, ...]:
    """``'1024,1280'`` of a command line."""
    return tuple(int(part) for part in text.split(','))


def read_flag(text: str) -> bool:
    """``'0'`` or ``'1'`` of a command line."""
    return bool(int(text))


def device_name() -> str:
    """The GPU, or the processor with the number of cores that this process may use."""
    import torch  # here, so that a child that measures another package's memory can do without

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f'{_processor()}, {len(os.sched_getaffinity(0))} cores'


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def versions(packages: Sequence[str]) -> str:
    """Python's, PyTorch's and those of installed distributions, in one line."""
    found = [f'Python {platform.python_version()}']
    for package in ('torch', *packages):
        try:
            found.append(f'{package} {metadata.version(package)}')
        except metadata.PackageNotFoundError:
            found.append(f'{package} not installed')
    return ', '.join(found)


def report(name: str, tables: Sequence[Table]) -> str:
    """Section of RESULTS.md for one run: date, device, versions, load, command and tables."""
    packages = dict.fromkeys(package for table in tables for package in table.packages)
    now = datetime.datetime.now(datetime.timezone.utc)
    load = f'{os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else 'unknown'
    command = shlex.join(['python', '-m', 'benchmarks', *sys.argv[1:]])
    head = [
        f'## {name}, {now:%Y-%m-%d %H:%M} UTC',
        '',
        f'`{command}`',
        '',
        f'{device_name()}; {versions(list(packages))}; load average of the last minute {load}',
    ]
    return '\n'.join(head) + '\n\n' + '\n'.join(table.markdown() for table in tables)


def append(text: str, path: Path = RESULTS) -> None:
    """Append a section to the file of results; what is there stays."""
    old = path.read_text(encoding='utf-8') if path.exists() else '# Measured\n'
    partial = path.with_name(f'{path.name}.partial')
    partial.write_text(f'{old.rstrip()}\n\n{text.rstrip()}\n', encoding='utf-8')
    os.replace(partial, path)


def peak_rss() -> int:
    """Most memory that this process has held, in bytes (Linux's ``VmHWM``)."""
    return _status('VmHWM')


def rss() -> int:
    """Memory that this process holds, in bytes (Linux's ``VmRSS``)."""
    return _status('VmRSS')


def reset_peak_rss() -> None:
    """Make :func:`peak_rss` start again from what is held now."""
    Path('/proc/self/clear_refs').write_text('5')


def _status(key: str) -> int:
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{key}:'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/self/status has no {key}: memory is measured on Linux only')
