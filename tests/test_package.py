"""What is shipped, and how it is found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import eva_mm

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """A wheel built from a copy of the checkout, so that no build files land in it."""
    tree = tmp_path_factory.mktemp('tree')
    for name in ('eva_mm', 'configs', 'requirements'):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, tree)
    out = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation']
    subprocess.run([*command, '-w', str(out), str(tree)], check=True)
    (file,) = out.glob('eva_mm-*.whl')
    return file


def test_wheel_holds_every_module_config_and_requirement(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / 'eva_mm').rglob('*'):
        if path.suffix in ('.py', '.yml', '.json') and '.mim' not in path.parts:
            assert path.relative_to(ROOT).as_posix() in names
    for folder in ('configs', 'requirements'):
        for path in (ROOT / folder).rglob('*'):
            if path.suffix in ('.py', '.txt'):
                assert f'eva_mm/.mim/{path.relative_to(ROOT).as_posix()}' in names
    assert not [name for name in names if name.startswith(('tests/', 'tools/', 'configs/'))]


def test_config_is_read_from_the_installed_wheel(wheel, tmp_path):
    pytest.importorskip('mmdet')
    site = tmp_path / 'site'
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        'import eva_mm\n'
        "config = eva_mm.get_config('lvis/eva_cascade')\n"
        'print(config.filename)\n'
        'print(config.model.backbone.type)\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        env={'PYTHONPATH': str(site), 'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    filename, backbone = result.stdout.splitlines()[-2:]  # hosts may print before
    assert filename == str(site / 'eva_mm' / '.mim' / 'configs' / 'lvis' / 'eva_cascade.py')
    assert backbone.endswith('EVAViTDet')


def test_wheel_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
    metadata = archive.read(name).decode()
    assert f'Version: {eva_mm.__version__}\n' in metadata
    required = re.findall(r'^Requires-Dist: (\S+?)[>=<;].*$', metadata, re.MULTILINE)
    hard = [
        line
        for line in metadata.splitlines()
        if line.startswith('Requires-Dist') and 'extra ==' not in line
    ]
    assert len(hard) == 1
    assert hard[0].startswith('Requires-Dist: torch')
    assert not [name for name in required if re.match(r'(onedl-)?mm(engine|cv|det|seg|act)', name)]
    for extra in ('engine', 'det', 'seg', 'video', 'cls', 'clip', 'all', 'dev'):
        assert f'Provides-Extra: {extra}\n' in metadata


def test_no_module_names_a_distribution_of_openmmlab():
    pattern = re.compile(
        r'onedl|mmdetection\b|mmsegmentation\b(?!``)|mmaction2\b|openmim|pip install mm'
    )
    for path in (ROOT / 'eva_mm').rglob('*.py'):
        code = re.sub(r'""".*?"""|#[^\n]*', '', path.read_text(encoding='utf-8'), flags=re.DOTALL)
        assert not pattern.search(code), f'{path} asks for a distribution by name'


def test_get_config_reads_the_checkout():
    pytest.importorskip('mmdet')
    config = eva_mm.get_config('lvis/eva_cascade')
    assert config.filename == str(ROOT / 'configs' / 'lvis' / 'eva_cascade.py')
    assert eva_mm.get_config('lvis/eva_cascade.py')._cfg_dict == config._cfg_dict


def test_unknown_config_lists_near_names():
    with pytest.raises(ValueError, match=r"'lvis/eva_casade'.*near: .*lvis/eva_cascade"):
        eva_mm.get_config('lvis/eva_casade')


@pytest.mark.parametrize('name', ['zzzzzz', '', '../setup', '/etc/hosts'])
def test_unknown_config_lists_all_names(name):
    with pytest.raises(ValueError, match=r'(available|near): .*coco/eva_cascade'):
        eva_mm.get_config(name)


def test_listed_configs_are_the_leaves():
    names = eva_mm.list_configs()
    files = {path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts}
    assert {eva_mm.config_path(name) for name in names} == files


def test_every_requirement_of_the_stack_is_pinned():
    """What the tested combination consists of has one exact version each."""
    for name in ('torch', 'mmcv', 'det', 'seg', 'clip'):
        lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
        for line in lines:
            if re.match(r'(torch|onedl|faster|timm|open_clip)', line):
                assert re.fullmatch(r'[\w-]+==[\d.]+', line), f'{name}.txt: {line}'
