#!/usr/bin/env python3
"""Create .venv and install the pinned stack into it (what `make env` calls).

Standard library only, as it runs before anything is installed. A second run returns at once: each
finished step leaves a line in `.venv/.eva_mm_env` with a digest of the files it depends on. An
interrupted run continues with the step it stopped in. Compiling mmcv's operators is the long step
(about 15 minutes on two cores); pip keeps the wheel it built, so that it is paid once per user.

Environment variables: FORCE_CUDA=0|1 decides about CUDA operators instead of the search for a GPU
and nvcc; TORCH_CUDA_ARCH_LIST and MAX_JOBS are passed on; EVA_MM_SKIP_CHECKS=1 skips the checks
of compiler and disk space.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / 'requirements'
PYTHONS = ((3, 10), (3, 11), (3, 12))
FREE_GB = 15  # 6 GB environment, the rest wheels in pip's cache and build files

# Compares the operators with what this machine needs; exit 1 asks for a fresh build.
CHECK_OPERATORS = """
import sys
from mmcv.ops import get_compiling_cuda_version, nms  # a stale wheel fails here: undefined symbol
sys.exit(sys.argv[1] == '1' and get_compiling_cuda_version() == 'not available')
"""
NETWORK = 'check the network and pip index settings, then repeat the command: it continues here'


class EnvError(SystemExit):
    """Ends the run with the failing step and its remedy."""

    def __init__(self, step: str, problem: str, remedy: str) -> None:
        super().__init__(f'\n[env] step "{step}" failed: {problem}\n[env] remedy: {remedy}')


def say(text: str) -> None:
    print(f'[env] {text}', flush=True)


def check_python() -> None:
    if sys.version_info[:2] not in PYTHONS:
        found = '.'.join(map(str, sys.version_info[:2]))
        accepted = ', '.join(f'{major}.{minor}' for major, minor in PYTHONS)
        raise EnvError(
            'python',
            f'found Python {found} ({sys.executable}), need one of {accepted}',
            'install Python 3.11 and run: make env PYTHON=/path/to/python3.11',
        )
    short = f'python{sys.version_info.major}.{sys.version_info.minor}'
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise EnvError(
            'python', 'this Python has no venv module', f'sudo apt-get install {short}-venv'
        ) from None
    if not Path(sysconfig.get_paths()['include'], 'Python.h').is_file():
        raise EnvError(
            'python',
            "Python.h is missing: mmcv's operators cannot be compiled",
            f'sudo apt-get install {short}-dev',
        )


def check_compiler() -> None:
    missing = [name for name in ('gcc', 'g++') if shutil.which(name) is None]
    if missing and not os.environ.get('CXX'):
        raise EnvError(
            'compiler',
            f"{' and '.join(missing)} not found: mmcv's operators cannot be compiled",
            'sudo apt-get install build-essential',
        )


def check_disk(folder: Path) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < FREE_GB:
        raise EnvError(
            'disk space',
            f'{free:.0f} GB free under {folder}, need {FREE_GB} GB',
            'free some space, or clone onto a larger disk',
        )


def wants_cuda() -> bool:
    """Whether mmcv's operators are compiled for CUDA: a GPU and nvcc are there, or FORCE_CUDA."""
    if 'FORCE_CUDA' in os.environ:
        return os.environ['FORCE_CUDA'] == '1'
    smi = shutil.which('nvidia-smi')
    if smi is None or subprocess.run([smi, '-L'], capture_output=True).returncode != 0:
        return False
    home = os.environ.get('CUDA_HOME', '/usr/local/cuda')
    if shutil.which('nvcc') or Path(home, 'bin', 'nvcc').is_file():
        return True
    say('a GPU is there but nvcc is not: operators are compiled for the CPU only.')
    say('For the GPU: install the CUDA 13.0 toolkit, set CUDA_HOME, make clean-env, make env')
    return False


class Environment:
    """The virtual environment and the record of what was installed into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / 'bin' / 'python'
        self.record = folder / '.eva_mm_env'

    def create(self) -> None:
        works = self.python.exists() and (
            subprocess.run([self.python, '-m', 'pip', '--version'], capture_output=True).returncode
            == 0
        )
        if works:
            return
        say(f'creating {self.folder}')
        command = [sys.executable, '-m', 'venv', '--clear', self.folder]
        if subprocess.run(command).returncode:
            raise EnvError('create', 'python -m venv failed', f'rm -rf {self.folder}; make env')

    def done(self, step: str, digest: str) -> bool:
        return self.record.exists() and f'{step} {digest}' in self.record.read_text().splitlines()

    def mark(self, step: str, digest: str) -> None:
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        lines = [line for line in lines if line.split()[0] != step] + [f'{step} {digest}']
        draft = self.record.with_suffix('.tmp')
        draft.write_text('\n'.join(lines) + '\n')
        os.replace(draft, self.record)

    def pip(self, step: str, *arguments: object, remedy: str = NETWORK, **variables: str) -> None:
        command = [str(self.python), '-m', 'pip', 'install', '--no-input', *map(str, arguments)]
        if not sys.stdout.isatty():
            command += ['--progress-bar', 'off']
        say(' '.join([*(f'{k}={v}' for k, v in variables.items()), 'pip', *command[3:]]))
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}).returncode
        if code:
            raise EnvError(step, f'pip ended with status {code} (its message is above)', remedy)


def install_build(env: Environment) -> None:
    env.pip('build', '-U', 'pip', '-r', REQUIREMENTS / 'build.txt')


def install_torch(env: Environment) -> None:
    env.pip('torch', '-c', REQUIREMENTS / 'constraints.txt', '-r', REQUIREMENTS / 'torch.txt')


def install_mmcv(env: Environment) -> None:
    cuda = '1' if wants_cuda() else '0'
    jobs = os.environ.get('MAX_JOBS', str(os.cpu_count() or 1))
    variables = {'MMCV_WITH_OPS': '1', 'FORCE_CUDA': cuda, 'MAX_JOBS': jobs}
    remedy = (
        'if the compiler was killed, set MAX_JOBS=1 (each job takes up to 2 GB); if it reports a '
        'CUDA mismatch, point CUDA_HOME to a 13.0 toolkit or set FORCE_CUDA=0; otherwise ' + NETWORK
    )
    say(f"mmcv's operators for {'CUDA' if cuda == '1' else 'CPU'}; about 15 minutes on two cores")
    arguments = ['--no-build-isolation', '-r', REQUIREMENTS / 'mmcv.txt']
    env.pip('mmcv', *arguments, remedy=remedy, **variables)
    if not operators_work(env, cuda):
        # pip's wheel cache does not know torch's version nor whether CUDA was asked for.
        say('the cached wheel of mmcv does not fit this machine: compiling anew')
        fresh = ['--force-reinstall', '--no-deps', '--no-cache-dir', *arguments]
        env.pip('mmcv', *fresh, remedy=remedy, **variables)
    if not operators_work(env, cuda):
        raise EnvError('mmcv', 'mmcv.ops cannot be imported', 'make clean-env; make env')


def operators_work(env: Environment, cuda: str) -> bool:
    command = [env.python, '-c', CHECK_OPERATORS, cuda]
    return subprocess.run(command, cwd=env.folder, capture_output=True).returncode == 0


def install_hosts(env: Environment) -> None:
    env.pip('hosts', '-r', REQUIREMENTS / 'all.txt')


def install_lvis(env: Environment) -> None:
    env.pip('lvis', '--no-deps', '-r', REQUIREMENTS / 'lvis.txt')


def install_video(env: Environment) -> None:
    env.pip('video', '--no-deps', '-r', REQUIREMENTS / 'video.txt')


def install_opencv(env: Environment) -> None:
    """On machines without libGL, put the headless OpenCV's files over those of opencv-python."""
    command = [str(env.python), '-c', 'import cv2']
    if subprocess.run(command, capture_output=True).returncode == 0:
        return
    constraints = ['-c', REQUIREMENTS / 'constraints.txt']
    env.pip('opencv', '--no-deps', '--force-reinstall', *constraints, 'opencv-python-headless')
    if subprocess.run(command).returncode:
        raise EnvError('opencv', 'import cv2 failed', 'sudo apt-get install libgl1 libglib2.0-0')


def install_project(env: Environment) -> None:
    env.pip('project', '--no-deps', '--no-build-isolation', '-e', ROOT)


STEPS = (
    ('build', install_build, ('build.txt',)),
    ('torch', install_torch, ('torch.txt', 'constraints.txt')),
    ('mmcv', install_mmcv, ('torch.txt', 'mmcv.txt', 'constraints.txt')),
    ('hosts', install_hosts, None),
    ('lvis', install_lvis, ('lvis.txt',)),
    ('video', install_video, ('video.txt',)),
    ('opencv', install_opencv, None),
    ('project', install_project, ('../setup.py', '../eva_mm/version.py')),
)


def digest(files: tuple[str, ...] | None) -> str:
    """Digest of requirement files (all of them for None), of this script's steps and the folder."""
    paths = (
        sorted(REQUIREMENTS.glob('*.txt')) if files is None else [REQUIREMENTS / f for f in files]
    )
    content = b'\0'.join(path.read_bytes() for path in paths)
    return hashlib.sha256(content).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv', help='default: .venv')
    parser.add_argument('--list', action='store_true', help='list the steps and what is done')
    arguments = parser.parse_args()
    env = Environment(arguments.venv.resolve())
    todo = [step for step in STEPS if not env.done(step[0], digest(step[2]))]
    if arguments.list:
        for step in STEPS:
            print(f'{step[0]:8} {"to do" if step in todo else "done"}')
        return
    if not todo:
        return
    check_python()
    if os.environ.get('EVA_MM_SKIP_CHECKS') != '1':
        check_compiler()
        if any(name == 'torch' for name, *_ in todo):
            check_disk(env.folder.parent)
    start = time.time()
    env.create()
    for name, install, files in todo:
        install(env)
        env.mark(name, digest(files))
    say(f'{env.folder} is ready ({(time.time() - start) / 60:.1f} min)')


if __name__ == '__main__':
    main()
