"""Tests of video are left out where mmaction2 or decord is not installed."""

from importlib.util import find_spec

if all(find_spec(name) for name in ('mmaction', 'decord')):
    from eva_mm import compat

    # Before any test file imports mmaction.
    compat.require('mmaction')
else:
    collect_ignore_glob = ['test_*.py']
