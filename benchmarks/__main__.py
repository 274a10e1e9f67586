"""``python -m benchmarks NAME...``: run benchmarks, print and keep their tables."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys

import benchmarks
from benchmarks.common import REGISTRY, RESULTS, append, report

_NOT_BENCHMARKS = ('common', 'measuring')


def find_benchmarks() -> None:
    """Import every module of the package, so that it registers what it has."""
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if not module.name.startswith('_') and module.name not in _NOT_BENCHMARKS:
            importlib.import_module(f'benchmarks.{module.name}')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line; unknown names end it with the names there are."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description=__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help='benchmarks to run, in order')
    parser.add_argument('--list', action='store_true', help='tell what there is and end')
    parser.add_argument(
        '--set', nargs='+', default=[], metavar='KEY=VALUE', help='options of the benchmarks'
    )
    parser.add_argument(
        '--no-save', action='store_true', help=f'print only, append nothing to {RESULTS.name}'
    )
    args = parser.parse_args(argv)
    if not (args.names or args.list):
        parser.error('name a benchmark, or ask with --list')
    unknown = [name for name in args.names if name not in REGISTRY]
    if unknown:
        known = ', '.join(sorted(REGISTRY))
        parser.error(f'there is no benchmark {unknown[0]!r}; there are {known}')
    args.options = _read_options(parser, args.names, args.set)
    return args


def _read_options(parser: argparse.ArgumentParser, names: list[str], texts: list[str]) -> dict:
    """Options per benchmark; every key must belong to one of those that run."""
    options: dict[str, dict] = {name: {} for name in names}
    for text in texts:
        key, equals, value = text.partition('=')
        takers = [name for name in names if key in REGISTRY[name].options]
        if not equals or not takers:
            known = sorted({key for name in names for key in REGISTRY[name].options})
            parser.error(f'--set {text}: expected KEY=VALUE with a key of {known}')
        for name in takers:
            try:
                options[name][key] = REGISTRY[name].options[key](value)
            except ValueError as error:
                parser.error(f'--set {text}: {error}')
    return options


def main(argv: list[str] | None = None) -> int:
    """Run what the command line names."""
    find_benchmarks()
    args = parse_args(argv)
    if args.list:
        width = max(map(len, REGISTRY))
        for name in sorted(REGISTRY):
            entry = REGISTRY[name]
            options = f' (--set {" ".join(f"{key}=..." for key in entry.options)})'
            print(f'{name:{width}}  {entry.summary}{options if entry.options else ""}')
        return 0
    for name in args.names:
        text = report(name, REGISTRY[name].run(**args.options[name]))
        print(text, flush=True)
        if not args.no_save:
            append(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
