"""Who may import whom: the arrows that keep the core free of hosts and the tasks apart.

Every module under eva_mm/ is parsed, so a new file is covered as soon as it exists; a new folder
or top-level module needs a row in ARROWS.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'eva_mm'
CORE = {'vit', 'rel_pos', 'rel_pos_kernels', 'resize'}
TASKS = {'pretraining', 'classification', 'detection', 'segmentation', 'video'}
# Packages that belong to no framework; adapters and the engine may use them.
SMALL = {
    'PIL',
    'cv2',
    'filelock',
    'matplotlib',
    'numpy',
    'psutil',
    'pycocotools',
    'rich',
    'scipy',
    'shapely',
    'terminaltables',
    'yaml',
}
OPENMMLAB = {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmaction', 'mmpretrain'}
HEAVY = OPENMMLAB | {'timm', 'open_clip', 'torchvision', 'huggingface_hub', 'cv2', 'scipy', 'PIL'}


class Row(NamedTuple):
    """What a top-level part of eva_mm may import, itself aside."""

    own: set[str]  # other parts of eva_mm
    other: set[str]  # distributions beyond the standard library
    inside: set[str] = set()  # additionally allowed inside functions


ARROWS = {
    '__init__': Row({'version'}, set(), {'compat', 'mmengine'}),
    'version': Row(set(), set()),
    'errors': Row(set(), set()),
    'vit': Row(CORE, {'torch'}),
    'rel_pos': Row(CORE, {'torch'}),
    'rel_pos_kernels': Row(set(), {'torch'}),
    'resize': Row(CORE, {'torch'}),
    'zoo': Row(
        CORE | {'errors'},
        {'torch', 'huggingface_hub', 'yaml', 'filelock', 'safetensors'},
        {'numpy', 'torchvision', 'open_clip'},
    ),
    'compat': Row(set(), {'mmengine'}, OPENMMLAB | {'torch'}),
    'doctor': Row({'compat'}, set()),
    'engine': Row({'zoo', 'compat', 'errors'}, {'torch', 'mmengine'} | SMALL),
    'backbones': Row(CORE | {'engine'}, {'torch', 'mmengine'}),
    'pretraining': Row(
        CORE | {'engine', 'compat', 'errors'},
        {'torch', 'mmengine', 'timm', 'torchvision', 'open_clip'} | SMALL,
    ),
    'classification': Row(
        CORE | {'engine', 'compat', 'errors'},
        {'torch', 'mmengine', 'timm', 'torchvision', 'open_clip'} | SMALL,
    ),
    'detection': Row(
        CORE | {'engine', 'compat', 'errors'},
        {'torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'faster_coco_eval'} | SMALL,
    ),
    'segmentation': Row(
        CORE | {'engine', 'compat', 'errors'},
        {'torch', 'mmengine', 'mmcv', 'mmseg', 'mmdet'} | SMALL,
    ),
    'video': Row(
        CORE | {'engine', 'compat', 'errors'},
        {'torch', 'mmengine', 'mmcv', 'mmaction', 'decord'} | SMALL,
        {'torchvision'},
    ),
    'demo': Row({'errors'}, {'numpy', 'cv2'}, {'pycocotools'}),
}


class Import(NamedTuple):
    """One imported module: dotted name, line, and whether it happens inside a function."""

    name: str
    line: int
    inside: bool


def part_of(path: Path) -> str:
    """'eva_mm/zoo/keys.py' -> 'zoo'; 'eva_mm/vit.py' -> 'vit'."""
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports_of(source: str, package: str) -> list[Import]:
    """All imports of a module, relative ones resolved against ``package`` (its own package)."""
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        for name in _names(node, package):
            found.append(Import(name, node.lineno, inside))
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test):
            inside = True  # never executed
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def _names(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ''
        if node.level:
            parents = package.split('.')[: len(package.split('.')) - node.level + 1]
            base = '.'.join([*parents, base] if base else parents)
        if base == 'eva_mm':  # `from eva_mm import vit` names the part in the alias
            return [f'eva_mm.{alias.name}' for alias in node.names]
        return [base]
    if isinstance(node, ast.Call):  # importlib.import_module('literal'), __import__('literal')
        callee = node.func.attr if isinstance(node.func, ast.Attribute) else None
        callee = callee or (node.func.id if isinstance(node.func, ast.Name) else None)
        literal = node.args and isinstance(node.args[0], ast.Constant)
        if callee in ('import_module', '__import__') and literal:
            return [str(node.args[0].value)]
    return []


def violations(path: Path) -> list[str]:
    part = part_of(path)
    row = ARROWS[part]
    package = '.'.join(path.relative_to(ROOT).parent.parts)
    broken = []
    for item in imports_of(path.read_text(encoding='utf-8'), package):
        top, _, rest = item.name.partition('.')
        allowed = row.own | row.other | (row.inside if item.inside else set())
        if top == 'eva_mm':
            target = rest.partition('.')[0]
            # The root offers the version and the config loader; names of functions count as root.
            fine = target in allowed | {part, '', 'version'} or not _is_part(target)
        else:
            fine = top in sys.stdlib_module_names or top in allowed
        if not fine:
            broken.append(f'{path.relative_to(ROOT)}:{item.line} imports {item.name}')
    return broken


def _is_part(name: str) -> bool:
    return (PACKAGE / name).is_dir() or (PACKAGE / f'{name}.py').is_file()


MODULES = sorted(PACKAGE.rglob('*.py'))


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_keeps_the_arrows(path):
    assert part_of(path) in ARROWS, f'{part_of(path)} has no row in ARROWS: say what it may import'
    assert violations(path) == []


def test_no_task_may_import_another():
    for task in TASKS:
        assert not ARROWS[task].own & TASKS
    for part in CORE | {'zoo', 'engine', 'backbones', 'demo', 'compat'}:
        assert not ARROWS[part].own & TASKS


def test_nothing_imports_tools():
    importers = []
    for folder in ('eva_mm', 'configs', 'tests', 'benchmarks', 'tools'):
        for path in (ROOT / folder).rglob('*.py'):
            package = '.'.join(path.relative_to(ROOT).parent.parts)
            for item in imports_of(path.read_text(encoding='utf-8'), package):
                if item.name.split('.')[0] == 'tools':
                    importers.append(f'{path.relative_to(ROOT)}:{item.line}')
    assert importers == []


@pytest.mark.parametrize(
    ('source', 'expected'),
    [
        ('import mmcv.ops', ('mmcv.ops', False)),
        ('def f():\n    from mmdet.apis import x', ('mmdet.apis', True)),
        ('from . import vit', ('eva_mm.detection', False)),
        ('from ..video import model', ('eva_mm.video', False)),
        ('from .. import video', ('eva_mm.video', False)),
        ("import importlib\nimportlib.import_module('mmseg')", ('mmseg', False)),
        ('class A:\n    try:\n        import timm\n    except ImportError: pass', ('timm', False)),
    ],
)
def test_the_parser_sees_every_form_of_import(source, expected):
    found = [(item.name, item.inside) for item in imports_of(source, 'eva_mm.detection')]
    assert expected in found


def run_with_blocked(blocked: set[str], modules: list[str]) -> None:
    """Import ``modules`` in a process in which importing any of ``blocked`` fails.

    torch comes first and unhindered: its own optional imports are none of our business.
    """
    code = textwrap.dedent(f"""
        import importlib, sys
        import torch
        blocked = {sorted(blocked)!r}
        before = set(sys.modules)
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.split('.')[0] in blocked:
                    raise ModuleNotFoundError(f'{{name}} is blocked in this test', name=name)
        sys.meta_path.insert(0, Blocker())
        for name in [name for name in sys.modules if name.split('.')[0] in blocked]:
            del sys.modules[name]
        for name in {modules!r}:
            importlib.import_module(name)
        loaded = {{name.split('.')[0] for name in sys.modules}} & set(blocked)
        assert not loaded, f'loaded although blocked: {{loaded}}'
    """)
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr


def names_of(parts: set[str]) -> list[str]:
    names = []
    for path in MODULES:
        if part_of(path) in parts:
            dotted = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
            names.append(dotted.removesuffix('.__init__'))
    return names


def test_core_imports_without_any_host():
    modules = names_of(CORE | {'__init__', 'version'})
    assert {'eva_mm', 'eva_mm.vit', 'eva_mm.rel_pos', 'eva_mm.resize'} <= set(modules)
    run_with_blocked(HEAVY, modules)


def test_zoo_and_compat_import_without_openmmlab():
    run_with_blocked(OPENMMLAB | {'timm', 'open_clip'}, names_of({'zoo', 'compat'}))


def test_demo_imports_without_torch_framework_hosts():
    run_with_blocked(OPENMMLAB | {'timm', 'open_clip', 'torchvision'}, names_of({'demo'}))


def test_blocking_is_real():
    with pytest.raises(AssertionError, match='is blocked in this test'):
        run_with_blocked(HEAVY, ['mmengine'])
