"""Everything that works around a defect or a gap of a host package.

Each mend names what is wrong upstream and when it can go. Hosts (mmengine, mmcv, mmdet ...) are
imported inside functions only, by import name: OpenMMLab's packages exist in more than one
distribution, and which one provides the import name is the user's choice.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import eva_mm

# Hosts whose configs ours inherit by `_base_ = '<host>::...'`.
CONFIG_HOSTS = ('mmdet', 'mmseg', 'mmaction', 'mmpretrain')
OWN_SCHEME = 'eva_mm::'


class HostError(ImportError):
    """A host package is missing or incompatible; the message holds the install line."""


@dataclass(frozen=True)
class Host:
    """What eva_mm needs of a host.

    Attributes:
        lowest: first version that works, inclusive.
        below: first version that is not accepted.
        requirements: file in ``requirements/`` that installs the tested versions.
        needs: hosts that this one stands on, checked before it.
        probe: a submodule that must exist too.
    """

    lowest: str
    below: str
    requirements: str
    needs: tuple[str, ...] = ()
    probe: str | None = None


HOSTS = {
    'mmengine': Host('0.10.7', '1.0', 'mmcv.txt'),
    # mmcv's `_ext` holds the compiled operators, absent from mmcv-lite and from a build without
    # MMCV_WITH_OPS=1.
    'mmcv': Host('2.1.0', '3.0', 'mmcv.txt', needs=('mmengine',), probe='mmcv._ext'),
    'mmdet': Host('3.3.0', '4.0', 'det.txt', needs=('mmengine', 'mmcv')),
    'mmseg': Host('1.2.0', '2.0', 'seg.txt', needs=('mmengine', 'mmcv')),
    'mmaction': Host('1.2.0', '2.0', 'video.txt', needs=('mmengine', 'mmcv')),
}


def require(host: str) -> None:
    """Make sure that a host can be imported in a version that works.

    Args:
        host: import name, a key of :data:`HOSTS`. What it stands on is checked first, so that the
            first missing link is the one reported.

    Raises:
        HostError: missing, broken or of another version: what was found, what was expected, and
            the line that installs the tested versions.
    """
    for name in (*HOSTS[host].needs, host):
        _require_one(name, asked_by=host)


def require_or_exit(host: str) -> None:
    """End the program with what :func:`require` says, for scripts that cannot start without."""
    try:
        require(host)
    except HostError as error:
        raise SystemExit(str(error)) from None


def _require_one(name: str, asked_by: str) -> None:
    host = HOSTS[name]
    wanted = f'{name} >= {host.lowest}, < {host.below}'
    if asked_by != name:
        wanted += f' (for {asked_by})'
    try:
        module = import_mmaction() if name == 'mmaction' else importlib.import_module(name)
    except ModuleNotFoundError as error:
        absent = error.name == name  # else the host is there, and something it imports is not
        problem = 'which is not installed' if absent else f'which is there but needs {error.name}'
        raise _host_error(name, asked_by, f'{wanted}, {problem}') from error
    except Exception as error:  # a host's own version check raises AssertionError
        problem = f'{wanted}, which is there but cannot be imported ({error})'
        raise _host_error(name, asked_by, problem) from error
    found = str(getattr(module, '__version__', 'unknown'))
    if not host_version_fits(found, host.lowest, host.below):
        raise _host_error(name, asked_by, f'{wanted}, but found {found}')
    if host.probe and importlib.util.find_spec(host.probe) is None:
        raise _host_error(
            name, asked_by, f'{wanted} with compiled operators, but {host.probe} is missing'
        )


def host_version_fits(found: str, lowest: str, below: str) -> bool:
    """Whether ``lowest <= found < below``, comparing the numeric release parts only."""
    release = _release(found)
    return bool(release) and _release(lowest) <= release < _release(below)


def _release(version: str) -> tuple[int, ...]:
    """('2', '1', '0rc1') -> (2, 1, 0); empty when the version does not start with a number.

    Three numbers are always returned, so that 1.0 equals 1.0.0.
    """
    match = re.match(r'\d+(\.\d+)*', version)
    if match is None:
        return ()
    parts = [int(part) for part in match.group().split('.')]
    return tuple((parts + [0, 0])[: max(3, len(parts))])


def _host_error(name: str, asked_by: str, problem: str) -> HostError:
    return HostError(f'eva_mm needs {problem}. Install with:\n{install_lines(name, asked_by)}')


def install_lines(name: str, asked_by: str | None = None) -> str:
    """Shell lines that install the tested versions of what ``asked_by`` (or ``name``) needs.

    A distribution that provides the import name already is removed first: a second one under
    another name would overwrite its files without replacing it.
    """
    folder = eva_mm.resource_dir('requirements')
    lines = []
    if providers := metadata.packages_distributions().get(name):
        lines.append(f'pip uninstall -y {" ".join(sorted(set(providers)))}')
    if name in ('mmengine', 'mmcv'):  # compiled against the torch of this environment
        lines.append(f'pip install -r {folder / "build.txt"}')
        lines.append(f'MMCV_WITH_OPS=1 pip install --no-build-isolation -r {folder / "mmcv.txt"}')
    file = HOSTS[asked_by or name].requirements
    if file != 'mmcv.txt':
        # mmaction2 asks for a second OpenCV, whose files would replace those of the first.
        alone = '--no-deps ' if file == 'video.txt' else ''
        lines.append(f'pip install {alone}-r {folder / file}')
    return '\n'.join(f'    {line}' for line in lines)


def prepare() -> None:
    """Apply the mends that must precede ``Config.fromfile``. Safe to call any number of times."""
    mend_package_map()
    mend_own_scheme()


def mend_package_map() -> None:
    """Let ``_base_ = 'mmseg::...'`` find a host whatever its distribution is called.

    mmengine's ``MODULE2PACKAGE`` (mmengine/config/utils.py) turns the import name into the name
    of one distribution (``mmseg`` into ``mmsegmentation``) and then asks for that distribution;
    a host installed under another distribution name is reported as not installed. Where the
    mapped distribution is absent and the import name is present, the import name is used.

    Removal: once mmengine looks hosts up by import name.
    """
    from mmengine.config import utils
    from mmengine.utils import is_installed

    for module in CONFIG_HOSTS:
        package = utils.MODULE2PACKAGE.get(module, module)
        if not is_installed(package) and importlib.util.find_spec(module) is not None:
            utils.MODULE2PACKAGE[module] = module


def mend_own_scheme() -> None:
    """Let ``_base_ = 'eva_mm::lvis/eva_cascade.py'`` inherit a config that ships with eva_mm.

    mmengine resolves ``package::`` only for the packages of its own table, and gives the parts it
    reads a registry scope of that name; eva_mm registers in its hosts' scopes and has none. The
    path is therefore resolved here and handed back without a scope, as for a local base.

    Removal: once mmengine lets a package register its config folder.
    """
    from mmengine.config import Config

    original = Config._get_cfg_path
    if hasattr(original, '_eva_mm'):
        return

    @functools.wraps(original)
    def get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if not cfg_path.startswith(OWN_SCHEME):
            return original(cfg_path, filename)
        name = cfg_path.removeprefix(OWN_SCHEME)
        return str(eva_mm.config_path(name)), None

    get_cfg_path._eva_mm = True
    Config._get_cfg_path = staticmethod(get_cfg_path)


def import_mmaction() -> ModuleType:
    """Import mmaction2 with its mends; every later import of it, or of its parts, works too.

    Returns:
        The package ``mmaction``.
    """
    with mmcv_read_as('2.1.0'):
        mmaction = importlib.import_module('mmaction')
    mend_mmaction_drn(mmaction)
    mend_mmaction_functions()
    return mmaction


@contextmanager
def mmcv_read_as(version: str) -> Iterator[None]:
    """Let ``mmcv.__version__`` read as another while the block runs.

    mmaction2 1.2.0 asserts mmcv < 2.2 at its import (``mmcv_maximum_version`` in
    mmaction/__init__.py): the newest mmcv of its day. What eva_mm uses of it works with mmcv 2.3.

    Removal: once a release of mmaction2 takes mmcv 2.3.
    """
    import mmcv

    own = mmcv.__version__
    mmcv.__version__ = version
    try:
        yield
    finally:
        mmcv.__version__ = own


def mend_mmaction_drn(mmaction: ModuleType) -> None:
    """Put a stand-in where mmaction2's wheel lacks a sub-package that it imports.

    The wheel of mmaction2 1.2.0 has no mmaction/models/localizers/drn, on which
    ``import mmaction.models`` fails (https://github.com/open-mmlab/mmaction2/issues/2714). The
    stand-in's ``DRN``, a temporal localizer that no config of ours uses, cannot be built.

    Removal: once a wheel of mmaction2 ships the folder.
    """
    name = 'mmaction.models.localizers.drn'
    folder = Path(mmaction.__file__).parent / 'models' / 'localizers' / 'drn'
    if name in sys.modules or folder.is_dir():
        return

    class DRN:
        """Not in this wheel of mmaction2."""

        def __init__(self, *args: object, **kwargs: object):
            raise HostError('this wheel of mmaction has no DRN')

    package, module = ModuleType(name), ModuleType(f'{name}.drn')
    package.__path__ = []  # makes it a package
    package.drn, module.DRN = module, DRN
    sys.modules[name], sys.modules[f'{name}.drn'] = package, module


def mend_mmaction_functions() -> None:
    """Let mmaction2's registry of functions look nowhere for what it lacks.

    mmaction2 1.2.0 gives it the location ``mmaction.mmengine`` (``FUNCTION`` in
    mmaction/registry.py), a module that does not exist, so that importing what belongs to the
    registry raises ModuleNotFoundError.

    Removal: once that location exists or is gone.
    """
    from mmaction.registry import FUNCTION

    FUNCTION._locations = [name for name in FUNCTION._locations if name != 'mmaction.mmengine']


def mend_mmaction_file_client() -> None:
    """Let mmaction2 read files by mmengine's file backends, without a warning per process.

    mmaction2 1.2.0's transforms (mmaction/datasets/transforms/loading.py) read through mmengine's
    ``FileClient``, which announces its removal on the standard output whenever it is built.

    Removal: once they use ``mmengine.fileio.get_file_backend``.
    """
    from mmaction.datasets.transforms import loading
    from mmengine.fileio import get_file_backend

    class Files:
        """What of ``FileClient`` is used there."""

        def __init__(self, backend: str = 'disk', **kwargs: object):
            name = 'local' if backend == 'disk' else backend
            self._backend = get_file_backend(backend_args=dict(backend=name, **kwargs))

        def get(self, path: str) -> bytes:
            return self._backend.get(path)

    loading.FileClient = Files


def mend_mmseg_output_dir() -> None:
    """Let every process of a test make the folder that it writes predictions into.

    In mmsegmentation 1.4.2 the first process alone makes ``IoUMetric.output_dir``
    (mmseg/evaluation/metrics/iou_metric.py), and another one that has a prediction sooner ends
    with FileNotFoundError.

    Removal: once the metric waits for the folder, or makes it in every process.
    """
    from mmengine.utils import mkdir_or_exist
    from mmseg.evaluation import IoUMetric

    original = IoUMetric.__init__
    if hasattr(original, '_eva_mm'):
        return

    @functools.wraps(original)
    def make_folder(self: IoUMetric, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        if self.output_dir:
            mkdir_or_exist(self.output_dir)

    make_folder._eva_mm = True
    IoUMetric.__init__ = make_folder
