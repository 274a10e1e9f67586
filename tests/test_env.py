"""`make env` and `make demo`: what they say when something is missing, and that they repeat."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FAKE_PYTHON = """#!/bin/sh
# A Python of a virtual environment that records what pip is asked for.
case "$*" in
  *--version*) exit 0 ;;
  *install*) echo "$* MMCV_WITH_OPS=$MMCV_WITH_OPS FORCE_CUDA=$FORCE_CUDA" >> "$PIP_LOG"
             case "$*" in *"$PIP_FAILS_ON"*) exit 1 ;; esac ;;
esac
exit 0
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of what `make env` reads, with a virtual environment whose Python only records."""
    for name in ('tools', 'requirements'):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ('Makefile', 'setup.py'):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / 'eva_mm').mkdir()
    shutil.copy(ROOT / 'eva_mm' / 'version.py', tmp_path / 'eva_mm')
    fake = tmp_path / '.venv' / 'bin' / 'python'
    fake.parent.mkdir(parents=True)
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)
    return tmp_path


def make_env(checkout: Path, fails_on: str = 'nothing', **variables: str):
    log = checkout / 'pip.log'
    log.unlink(missing_ok=True)
    environment = {
        **os.environ,
        'EVA_MM_SKIP_CHECKS': '1',
        'FORCE_CUDA': '0',
        'PIP_LOG': str(log),
        'PIP_FAILS_ON': fails_on,
        **variables,
    }
    result = subprocess.run(
        ['make', 'env', f'PYTHON={sys.executable}'],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    calls = log.read_text().splitlines() if log.exists() else []
    return result, calls


def test_env_installs_in_order_and_then_rests(checkout):
    result, calls = make_env(checkout)
    assert result.returncode == 0, result.stderr
    files = ['build.txt', 'torch.txt', 'mmcv.txt', 'all.txt', 'lvis.txt', 'video.txt']
    order = [*files, f'-e {checkout}']
    assert [name for name, call in zip(order, calls) if name in call] == order
    mmcv = calls[2]
    assert '--no-build-isolation' in mmcv
    assert 'MMCV_WITH_OPS=1 FORCE_CUDA=0' in mmcv
    assert make_env(checkout)[1] == []


def test_env_continues_where_it_was_interrupted(checkout):
    result, calls = make_env(checkout, fails_on='mmcv.txt')
    assert result.returncode != 0
    assert 'step "mmcv" failed' in result.stderr
    assert 'remedy: ' in result.stderr
    assert len(calls) == 3
    result, calls = make_env(checkout)
    assert result.returncode == 0
    assert 'mmcv.txt' in calls[0]


def test_env_repeats_what_a_changed_pin_touches(checkout):
    make_env(checkout)
    with (checkout / 'requirements' / 'test.txt').open('a') as file:
        file.write('# changed\n')
    calls = make_env(checkout)[1]
    assert [call for call in calls if 'all.txt' in call]
    assert not [call for call in calls if 'mmcv.txt' in call or 'torch.txt' in call]


def test_env_names_a_missing_compiler(checkout, tmp_path):
    tools = tmp_path / 'path'
    tools.mkdir()
    for name in ('make', 'sh', 'dirname'):
        (tools / name).symlink_to(shutil.which(name))
    result, calls = make_env(checkout, EVA_MM_SKIP_CHECKS='0', PATH=str(tools), CXX='')
    assert result.returncode != 0
    assert 'step "compiler" failed: gcc and g++ not found' in result.stderr
    assert 'build-essential' in result.stderr
    assert calls == []


def test_env_names_a_missing_python(checkout):
    result = subprocess.run(
        ['make', 'env', 'PYTHON='], cwd=checkout, capture_output=True, text=True, timeout=60
    )
    assert result.returncode != 0
    assert 'install Python 3.11' in result.stdout


def test_demo_names_the_failing_step_and_its_remedy(tmp_path):
    pytest.importorskip('mmcv')
    (tmp_path / 'tools').mkdir()
    shutil.copy(ROOT / 'tools' / 'demo.py', tmp_path / 'tools')
    (tmp_path / 'tools' / 'make_demo.py').write_text('raise SystemExit(3)\n')
    result = subprocess.run(
        [sys.executable, tmp_path / 'tools' / 'demo.py'],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0
    assert 'data: python tools/make_demo.py lvis --out data/demo/lvis' in result.stdout
    assert 'step "data" failed: the command above ended with status 3' in result.stderr
    assert 'remedy: rm -rf data/demo/lvis; make demo' in result.stderr
