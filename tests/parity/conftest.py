"""A reference folder that was named but fits no test is a mistake, not a reason to skip."""

import os

import pytest

from .reference import PREFIXES, reference_dir


def pytest_collection_modifyitems(items):
    """Fail the collection when ``EVA_MM_REFERENCE`` is set and nothing in it matches."""
    if not os.environ.get('EVA_MM_REFERENCE') or not PREFIXES:
        return
    folder = reference_dir()
    if not folder.is_dir():
        raise pytest.UsageError(f'EVA_MM_REFERENCE={folder} is no folder')
    if not any(list(folder.glob(f'{p}*{suffix}')) for p, suffix in PREFIXES.items()):
        expected = ', '.join(f'{p}*{suffix}' for p, suffix in sorted(PREFIXES.items()))
        raise pytest.UsageError(f'EVA_MM_REFERENCE={folder} holds none of {expected}')
