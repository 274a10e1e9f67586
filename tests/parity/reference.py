"""Finds the reference files computed with the authors' code.

``EVA_MM_REFERENCE`` names their folder. Unset, the folder ``../shared/golden`` beside the
checkout is tried, and the parity tests skip when it is absent. Set, it must exist and hold at
least one file that some parity test takes (checked in ``conftest.py``).
"""

import os
from pathlib import Path

import pytest

DEFAULT_DIR = Path(__file__).resolve().parents[3] / 'shared' / 'golden'
PREFIXES: dict[str, str] = {}


def reference_dir() -> Path:
    """Folder of the reference files (may not exist)."""
    return Path(os.environ.get('EVA_MM_REFERENCE') or DEFAULT_DIR)


def reference_files(prefix: str, suffix: str = '.pt') -> list:
    """Pytest parameters: one per reference file that starts with ``prefix``.

    Without any, one parameter that skips and says why.
    """
    PREFIXES[prefix] = suffix
    files = sorted(reference_dir().glob(f'{prefix}*{suffix}'))
    if files:
        return [pytest.param(file, id=file.stem) for file in files]
    reason = f'no reference file {prefix}*{suffix} in {reference_dir()} (see EVA_MM_REFERENCE)'
    return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id='absent')]
