"""Each mend, and what happens without it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

import eva_mm
from eva_mm import compat

pytest.importorskip('mmengine')
from mmengine.config import Config, utils  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def distribution_under_another_name(tmp_path, monkeypatch):
    """A package `mmseg` on the path whose distribution mmengine cannot find."""
    package = tmp_path / 'site' / 'mmseg'
    (package / '.mim' / 'configs' / '_base_').mkdir(parents=True)
    (package / '__init__.py').touch()
    (package / '.mim' / 'model-index.yml').write_text('Import: []\n')
    (package / '.mim' / 'configs' / '_base_' / 'part.py').write_text('answer = 42\n')
    leaf = tmp_path / 'leaf.py'
    leaf.write_text("_base_ = 'mmseg::_base_/part.py'\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.delitem(sys.modules, 'mmseg', raising=False)
    monkeypatch.setitem(utils.MODULE2PACKAGE, 'mmseg', 'no-such-distribution')
    return leaf


def test_package_map_finds_a_host_by_import_name(distribution_under_another_name):
    leaf = str(distribution_under_another_name)
    with pytest.raises(ModuleNotFoundError, match='no-such-distribution is not installed'):
        Config.fromfile(leaf)
    compat.mend_package_map()
    assert Config.fromfile(leaf).answer == 42


def test_package_map_keeps_a_distribution_that_is_there(monkeypatch):
    monkeypatch.setitem(utils.MODULE2PACKAGE, 'mmseg', 'pytest')
    compat.mend_package_map()
    assert utils.MODULE2PACKAGE['mmseg'] == 'pytest'


def test_package_map_leaves_an_absent_host_alone(monkeypatch):
    monkeypatch.setattr(compat, 'CONFIG_HOSTS', ('mmtrack',))
    before = utils.MODULE2PACKAGE['mmtrack']
    compat.mend_package_map()
    assert utils.MODULE2PACKAGE['mmtrack'] == before


@pytest.mark.parametrize('host', ['mmdet', 'mmseg'])
def test_installed_hosts_configs_resolve(host, tmp_path):
    pytest.importorskip(host)
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f"_base_ = '{host}::_base_/default_runtime.py'\n")
    compat.prepare()
    assert Config.fromfile(str(leaf)).default_scope == host


def own_scheme_script(tmp_path: Path, prepare: str) -> subprocess.CompletedProcess:
    """Read `eva_mm::` in a fresh process, as the mend stays for the life of one."""
    name = eva_mm.list_configs()[0]
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f"_base_ = 'eva_mm::{name}.py'\nadded = 1\n")
    code = (
        'import eva_mm; from eva_mm import compat; from mmengine.config import Config\n'
        f'{prepare}\n'
        f'inherited, plain = Config.fromfile({str(leaf)!r}), eva_mm.get_config({name!r})\n'
        "assert inherited.pop('added') == 1\n"
        'assert inherited._cfg_dict == plain._cfg_dict\n'
    )
    return subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_own_scheme_reads_the_same_config(tmp_path):
    result = own_scheme_script(tmp_path, 'compat.prepare(); compat.prepare()')
    assert result.returncode == 0, result.stderr


def test_own_scheme_fails_without_the_mend(tmp_path):
    result = own_scheme_script(tmp_path, 'pass')
    assert 'does not support to load eva_mm config' in result.stderr


def test_require_accepts_what_is_installed():
    for host in compat.HOSTS:
        if importlib.util.find_spec(host) is None:
            pytest.skip(f'{host} is not installed')
        compat.require(host)


def run_fresh(code: str) -> subprocess.CompletedProcess:
    """Run Python in a process in which no host is imported yet."""
    return subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.skipif(importlib.util.find_spec('mmaction') is None, reason='needs mmaction2')
def test_mmaction_imports_beside_this_mmcv():
    result = run_fresh(
        'from eva_mm import compat; import mmcv; own = mmcv.__version__\n'
        "compat.require('mmaction')\n"
        'assert mmcv.__version__ == own\n'
        'from mmaction.apis.inferencers import MMAction2Inferencer\n'
        'from mmaction.models.localizers import BMN, DRN\n'
        'from mmaction.registry import FUNCTION\n'
        'FUNCTION.import_from_location()\n'
        'try:\n    DRN()\n'
        "except compat.HostError as error:\n    assert 'has no DRN' in str(error)\n"
        "else:\n    raise AssertionError('the stand-in was built')\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(importlib.util.find_spec('mmaction') is None, reason='needs mmaction2')
@pytest.mark.parametrize(
    ('left_out', 'message'),
    [
        ('mmcv_read_as', 'is used but incompatible'),
        ('mend_mmaction_drn', 'mmaction.models.localizers.drn'),
        ('mend_mmaction_functions', 'mmaction.mmengine'),
    ],
)
def test_each_mend_of_mmaction_is_needed(left_out, message):
    result = run_fresh(
        'import contextlib; from eva_mm import compat\n'
        f'compat.{left_out} = lambda *_: contextlib.nullcontext()\n'
        "compat.require('mmaction')\n"
        'import mmaction.models; from mmaction.registry import FUNCTION\n'
        'FUNCTION.import_from_location()\n'
    )
    assert result.returncode != 0
    assert message in result.stderr


def test_require_names_a_missing_host_and_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmdet', None)  # makes `import mmdet` fail
    with pytest.raises(compat.HostError) as error:
        compat.require('mmdet')
    message = str(error.value)
    assert 'mmdet >= 3.3.0, < 4.0, which is not installed' in message
    file = Path(message.rsplit('-r ', 1)[1].strip())
    assert file.name == 'det.txt'
    assert file.is_file()


def test_require_reports_the_first_missing_link(monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    monkeypatch.setitem(sys.modules, 'mmdet', None)
    with pytest.raises(compat.HostError, match=r'mmcv >= .* \(for mmdet\), which is not') as error:
        compat.require('mmdet')
    assert '--no-build-isolation' in str(error.value)
    assert 'det.txt' in str(error.value)


@pytest.mark.parametrize('version', ['2.28.0', '4.0.0', 'dev'])
def test_require_rejects_other_versions(monkeypatch, version):
    stub = types.ModuleType('mmdet')
    stub.__version__ = version
    monkeypatch.setitem(sys.modules, 'mmdet', stub)
    with pytest.raises(compat.HostError, match=f'but found {version}'):
        compat.require('mmdet')


def test_require_wraps_a_host_that_fails_on_import(tmp_path, monkeypatch):
    broken = tmp_path / 'mmdet'
    broken.mkdir()
    (broken / '__init__.py').write_text("raise AssertionError('MMCV==9 is incompatible')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'mmdet', raising=False)
    with pytest.raises(compat.HostError, match='cannot be imported .MMCV==9 is incompatible'):
        compat.require('mmdet')


def test_require_names_what_a_host_misses(tmp_path, monkeypatch):
    broken = tmp_path / 'mmdet'
    broken.mkdir()
    (broken / '__init__.py').write_text('import a_package_nobody_has\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, 'mmdet', raising=False)
    with pytest.raises(compat.HostError, match='which is there but needs a_package_nobody_has'):
        compat.require('mmdet')


def test_require_wants_compiled_operators(monkeypatch):
    pytest.importorskip('mmcv')
    host = compat.HOSTS['mmcv']
    lacking = compat.Host(host.lowest, host.below, host.requirements, probe='mmcv._no_such_ext')
    monkeypatch.setitem(compat.HOSTS, 'mmcv', lacking)
    with pytest.raises(compat.HostError, match='with compiled operators'):
        compat.require('mmcv')


def test_an_installed_provider_is_uninstalled_first(monkeypatch):
    monkeypatch.setattr(
        compat.metadata, 'packages_distributions', lambda: {'mmdet': ['some-mmdet']}
    )
    lines = compat.install_lines('mmdet').splitlines()
    assert lines[0].strip() == 'pip uninstall -y some-mmdet'


@pytest.mark.parametrize(
    ('found', 'fits'),
    [
        ('3.3.0', True),
        ('3.3.0rc1', True),
        ('3.10', True),
        ('3.5.1+cu130', True),
        ('3.2.9', False),
        ('4', False),
        ('4.0.0', False),
        ('', False),
    ],
)
def test_version_range(found, fits):
    assert compat.host_version_fits(found, '3.3.0', '4.0') is fits


@pytest.mark.skipif(importlib.util.find_spec('mmaction') is None, reason='needs mmaction2')
def test_mmaction_reads_files_without_a_warning(tmp_path):
    (tmp_path / 'a').write_bytes(b'content')
    code = (
        'from eva_mm import compat\n'
        "compat.require('mmaction')\n"
        '{mend}'
        'from mmaction.datasets.transforms import loading\n'
        f"assert loading.FileClient('disk').get({str(tmp_path / 'a')!r}) == b'content'\n"
    )
    told = {}
    for mend in ('', 'compat.mend_mmaction_file_client()\n'):
        done = subprocess.run(
            [sys.executable, '-c', code.format(mend=mend)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        told[bool(mend)] = 'will be deprecated' in done.stdout
    assert told == {False: True, True: False}


def test_every_process_makes_the_folder_of_its_predictions(tmp_path, monkeypatch):
    pytest.importorskip('mmseg')
    from mmseg.evaluation import IoUMetric
    from mmseg.evaluation.metrics import iou_metric

    import eva_mm.segmentation  # noqa: F401  mends it

    monkeypatch.setattr(iou_metric, 'is_main_process', lambda: False)
    IoUMetric(output_dir=str(tmp_path / 'a' / 'b'))
    assert (tmp_path / 'a' / 'b').is_dir()
    assert IoUMetric().output_dir is None
