"""What is installed, does it work together, and what mends it: `python tools/doctor.py`.

Standard library only: it runs before anything else is installed. Whatever must be imported to be
judged is imported in a process of its own, so that a package that crashes is reported as such.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import eva_mm
from eva_mm import compat

OK, NOTE, BROKEN = 'ok', 'note', 'BROKEN'
PYTHONS = ((3, 10), (3, 13))  # first accepted, first not accepted
TORCH = ('2.6', '3.0')
GB = 1e9
# EVA-g with AdamW in fp32: 1.07e9 parameters, three numbers of four bytes each.
CHECKPOINT_GB = 13
SHARED_MEMORY_GB = 1
COLUMNS = 100

# Each prints one line of JSON.
PROBES = {
    'torch': """
import torch
gpus = []
reason = ''
if torch.version.cuda:
    try:
        torch.cuda.init()
    except Exception as error:
        reason = str(error).splitlines()[0]
for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    p = torch.cuda.get_device_properties(i)
    gpus.append([p.name, p.total_memory, [p.major, p.minor]])
answer = dict(version=torch.__version__, cuda=torch.version.cuda, gpus=gpus, reason=reason,
              archs=torch.cuda.get_arch_list() if gpus else [])
""",
    'torchvision': """
import torch, torchvision
torchvision.ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5)
answer = dict(version=torchvision.__version__)
""",
    'operators': """
import torch
from mmcv.ops import get_compiling_cuda_version, nms
import mmcv
boxes = torch.tensor([[0., 0., 10., 10.], [0., 0., 10., 9.], [20., 20., 30., 30.]])
scores = torch.tensor([0.9, 0.8, 0.7])
answer = dict(version=mmcv.__version__, cuda=get_compiling_cuda_version(),
              kept=nms(boxes, scores, 0.5)[1].tolist(), on_gpu='')
if torch.cuda.is_available():
    try:
        answer['on_gpu'] = nms(boxes.cuda(), scores.cuda(), 0.5)[1].tolist()
    except Exception as error:
        answer['on_gpu'] = str(error).splitlines()[0]
""",
    **{
        name: f'import {name}\nanswer = dict(version={name}.__version__)\n'
        for name in ('mmengine', 'mmdet', 'mmseg')
    },
    'mmaction': f"""
import importlib.util, sys
if importlib.util.find_spec('mmaction') is None:  # before what it stands on is missed
    raise ModuleNotFoundError("No module named 'mmaction'")
sys.path.append({str(Path(eva_mm.__file__).resolve().parents[1])!r})
from eva_mm import compat
answer = dict(version=compat.import_mmaction().__version__)
try:
    import decord
    answer['decord'] = decord.__version__
except Exception as error:
    answer['reason'] = f'{{type(error).__name__}}: {{error}}'.splitlines()[0]
""",
}
# Hosts that one task alone needs.
OPTIONAL = {'mmseg': 'segmentation', 'mmaction': 'videos'}
# Small packages, imported one after another in one process: import name -> distribution.
LIBRARIES = {
    'numpy': 'numpy',
    'PIL': 'Pillow',
    'cv2': 'opencv-python',
    'pycocotools.mask': 'pycocotools',
    'shapely': 'shapely',
    'faster_coco_eval': 'faster-coco-eval',
    'huggingface_hub': 'huggingface_hub',
}
PROBES['libraries'] = f"""
import importlib
answer = dict()
for name in {list(LIBRARIES)!r}:
    try:
        importlib.import_module(name)
        answer[name] = ''
    except BaseException as error:
        answer[name] = f'{{type(error).__name__}}: {{error}}'.splitlines()[0]
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what it is about.
        text: what was found.
        level: 'ok', 'note' (works, worth knowing) or 'BROKEN'.
        remedy: what to type or do; of a problem.
    """

    name: str
    text: str
    level: str = OK
    remedy: str = ''


# ------------------------------------------------------------------------------------------ probing


def probe(code: str, timeout: float = 300) -> dict:
    """Run a probe in a process of its own.

    Returns:
        dict: Its answer, or ``{'error': last line of what it said}``.
    """
    script = f'import json, warnings\nwarnings.simplefilter("ignore")\n{code}\nprint()\n'
    script += 'print(json.dumps(answer))\n'
    try:
        done = subprocess.run(
            [sys.executable, '-c', script], capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return {'error': f'no answer after {timeout:.0f} s'}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        signal = f'ended by signal {-done.returncode}' if done.returncode < 0 else 'no message'
        return {'error': lines[-1].strip() if lines and done.returncode > 0 else signal}
    return json.loads(done.stdout.splitlines()[-1])


def run_probes() -> dict[str, dict]:
    """Answers of all probes, by name."""
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        return dict(zip(PROBES, pool.map(probe, PROBES.values())))


def distributions_of(name: str) -> dict[str, str]:
    """Distribution -> version of all that provide an import name."""
    found = {}
    for distribution in set(metadata.packages_distributions().get(name, ())):
        try:
            found[distribution] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[distribution] = 'unknown'
    return dict(sorted(found.items()))


def driver_gpus() -> list[str]:
    """GPUs as the driver lists them: 'name, driver version'; empty without driver or GPU."""
    smi = shutil.which('nvidia-smi')
    if smi is None:
        return []
    query = [smi, '--query-gpu=name,driver_version', '--format=csv,noheader']
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


# ------------------------------------------------------------------------------------------ judging


def requirements(name: str) -> str:
    """The pip line that installs one of the requirement files."""
    return f'pip install -r {_short(eva_mm.resource_dir("requirements") / name)}'


def _short(path: Path) -> str:
    """Relative to the current folder where it lies below."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def check_python(version: tuple[int, int, int], executable: str) -> Finding:
    """Python's version."""
    text = f'{".".join(map(str, version))}, {executable}'
    if PYTHONS[0] <= version[:2] < PYTHONS[1]:
        return Finding('python', text)
    accepted = f'{PYTHONS[0][0]}.{PYTHONS[0][1]} to {PYTHONS[1][0]}.{PYTHONS[1][1] - 1}'
    return Finding(
        'python', f'{text}; accepted: {accepted}', BROKEN, 'make env PYTHON=/path/to/python3.11'
    )


def check_torch(answer: Mapping) -> Finding:
    """PyTorch: loads, version."""
    install = requirements('torch.txt')
    if 'error' in answer:
        absent = "No module named 'torch'" in answer['error']
        text = 'not installed' if absent else f'cannot be imported: {answer["error"]}'
        return Finding('torch', text, BROKEN, install)
    built = f'built with CUDA {answer["cuda"]}' if answer['cuda'] else 'built for the CPU only'
    text = f'{answer["version"]}, {built}'
    if not compat.host_version_fits(answer['version'], *TORCH):
        return Finding('torch', f'{text}; accepted: {TORCH[0]} or later', BROKEN, install)
    return Finding('torch', text)


def check_torchvision(answer: Mapping, torch: Mapping) -> Iterator[Finding]:
    """Torchvision: its compiled part fits torch."""
    if 'error' in torch:
        return
    if 'error' in answer:
        text = f'does not fit torch {torch["version"]}: {answer["error"]}'
        yield Finding('torchvision', text, BROKEN, requirements('torch.txt'))
    else:
        yield Finding('torchvision', answer['version'])


def check_gpu(torch: Mapping, listed: list[str], environment: Mapping[str, str]) -> Finding:
    """What driver and torch say of GPUs."""
    gpus = torch.get('gpus') or []
    if not gpus and not listed:
        return Finding('GPU', 'none: the demo runs on a CPU, published sizes need GPUs', NOTE)
    if not gpus:
        return _unseen_gpu(torch, listed, environment)
    name, memory, capability = gpus[0]
    driver = listed[0].rpartition(',')[2].strip() if listed else 'unknown'
    bf16 = 'bf16' if tuple(capability) >= (8, 0) else 'no bf16 (float16 is used)'
    text = f'{len(gpus)} x {name}, {memory / GB:.0f} GB, {bf16}, driver {driver}'
    if torch['archs'] and not _runs_on(tuple(capability), torch['archs']):
        text += f'; torch has no kernels for compute capability {capability[0]}.{capability[1]}'
        remedy = 'install the torch build for this GPU: https://pytorch.org/get-started/locally'
        return Finding('GPU', text, BROKEN, remedy)
    return Finding('GPU', text)


def _unseen_gpu(torch: Mapping, listed: list[str], environment: Mapping[str, str]) -> Finding:
    text = f'{len(listed)} x {listed[0]} (driver), but torch sees none'
    hidden = environment.get('CUDA_VISIBLE_DEVICES')
    if hidden is not None and hidden.strip() in ('', '-1', 'NoDevFiles'):
        return Finding('GPU', f'{text}: CUDA_VISIBLE_DEVICES={hidden!r} hides them', NOTE)
    if 'error' in torch:
        return Finding('GPU', text, NOTE)
    if torch['cuda'] is None:
        remedy = requirements('torch.txt')
        return Finding('GPU', f'{text}: torch is built for the CPU only', BROKEN, remedy)
    reason = torch['reason'] or 'no reason given'
    remedy = f'update the NVIDIA driver to one for CUDA {torch["cuda"]}, or install an older torch'
    return Finding('GPU', f'{text}: {reason}', BROKEN, remedy)


def _runs_on(capability: tuple[int, int], archs: list[str]) -> bool:
    """Machine code runs on the same major version from its minor on; PTX on anything later."""
    for arch in archs:
        kind, _, number = arch.partition('_')
        digits = ''.join(c for c in number if c.isdigit())
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == 'compute' and built <= capability:
            return True
        if kind == 'sm' and built[0] == capability[0] and built[1] <= capability[1]:
            return True
    return False


def check_host(name: str, answer: Mapping, needed: bool) -> Finding:
    """An OpenMMLab package: its version is accepted and it can be imported."""
    lowest, below = compat.HOSTS[name].lowest, compat.HOSTS[name].below
    accepted = f'accepted: {lowest} <= version < {below}'
    remedy = compat.install_lines(name)
    error = answer.get('error')
    if error and f"No module named '{name}'" in error:
        level = BROKEN if needed else NOTE
        what = 'not installed' if needed else f'not installed (for {OPTIONAL[name]} only)'
        return Finding(name, what, level, remedy if needed else '')
    if error:
        return Finding(name, f'cannot be imported: {error}', BROKEN, remedy)
    version = answer['version']
    if not compat.host_version_fits(version, lowest, below):
        return Finding(name, f'{version}; {accepted}', BROKEN, remedy)
    return Finding(name, version)


def check_video(answer: Mapping) -> Finding:
    """mmaction2, and decord, by which videos are read."""
    finding = check_host('mmaction', answer, needed=False)
    if finding.level != OK or 'error' in answer:
        return finding
    if 'decord' not in answer:
        text = f'{answer["version"]}, but no videos can be read: {answer["reason"]}'
        return Finding('mmaction', text, BROKEN, compat.install_lines('mmaction'))
    return Finding('mmaction', f'{answer["version"]}, decord {answer["decord"]}')


def check_operators(answer: Mapping, torch: Mapping) -> Finding:
    """mmcv: version, its compiled operators load and compute, and are built for what is here."""
    rebuild = (
        'FORCE_CUDA=1 MMCV_WITH_OPS=1 pip install --no-build-isolation --no-deps '
        '--force-reinstall --no-cache-dir -r '
        + _short(eva_mm.resource_dir('requirements') / 'mmcv.txt')
    )
    if 'error' in answer:
        error = answer['error']
        if "'mmcv._ext'" in error:
            error = 'installed without compiled operators (mmcv-lite, or no MMCV_WITH_OPS=1)'
        elif 'undefined symbol' in error:
            error = f'compiled for another torch: {error}'
        return check_host('mmcv', {'error': error}, needed=True)
    finding = check_host('mmcv', answer, needed=True)
    if finding.level != OK:
        return finding
    text = f'{answer["version"]}, operators run, built for '
    text += 'the CPU' if answer['cuda'] == 'not available' else f'CUDA {answer["cuda"]}'
    if answer['kept'] != [0, 2]:
        return Finding('mmcv', f'{text}, but nms keeps {answer["kept"]} of [0, 2]', BROKEN, rebuild)
    if not torch.get('gpus'):
        return Finding('mmcv', text)
    if answer['cuda'] == 'not available':
        return Finding('mmcv', f'{text}, while there is a GPU', BROKEN, rebuild)
    if str(answer['cuda']).split('.')[0] != str(torch['cuda']).split('.')[0]:
        return Finding('mmcv', f'{text}, but torch for CUDA {torch["cuda"]}', BROKEN, rebuild)
    if answer['on_gpu'] != [0, 2]:
        return Finding('mmcv', f'{text}, fails on the GPU: {answer["on_gpu"]}', BROKEN, rebuild)
    return Finding('mmcv', text)


def check_duplicates(name: str, found: Mapping[str, str]) -> Iterator[Finding]:
    """One OpenMMLab package from two distributions, whose files lie over one another."""
    if len(found) > 1:
        listed = ' and '.join(f'{d} {v}' for d, v in found.items())
        text = f'{listed} both provide {name} and overwrite each other'
        yield Finding(f'{name} twice', text, BROKEN, compat.install_lines(name))


def check_opencv(found: Mapping[str, str]) -> Iterator[Finding]:
    """Several OpenCV distributions share one folder: harmless while their versions agree."""
    if len(found) < 2:
        return
    if len(set(found.values())) == 1:
        version = next(iter(found.values()))
        yield Finding('OpenCV', f'{version}, the same in {" and ".join(found)}')
        return
    listed = ', '.join(f'{d} {v}' for d, v in found.items())
    constraints = _short(eva_mm.resource_dir('requirements') / 'constraints.txt')
    remedy = (
        f'pip uninstall -y {" ".join(found)}\n'
        f'pip install --no-deps -c {constraints} opencv-python opencv-python-headless'
    )
    yield Finding('OpenCV', f'of different versions in one folder: {listed}', BROKEN, remedy)


def check_libraries(answer: Mapping) -> Iterator[Finding]:
    """Small packages that detection needs can be imported."""
    constraints = _short(eva_mm.resource_dir('requirements') / 'constraints.txt')
    if 'error' in answer:
        yield Finding('libraries', answer['error'], BROKEN, requirements('det.txt'))
        return
    absent = [n for n, error in answer.items() if error.startswith('ModuleNotFoundError')]
    if absent:
        text = f'not installed: {", ".join(LIBRARIES[name] for name in absent)}'
        yield Finding('libraries', text, BROKEN, requirements('det.txt'))
    broken = {n: error for n, error in answer.items() if error and n not in absent}
    for name, error in broken.items():
        remedy = f'pip install -c {constraints} {LIBRARIES[name]}'
        if name == 'cv2' and '.so' in error:  # libGL, which only windows need
            remedy = f'pip install --force-reinstall --no-deps -c {constraints} '
            remedy += 'opencv-python-headless'
        yield Finding(LIBRARIES[name], error, BROKEN, remedy)
    works = [name for name, error in answer.items() if not error]
    if works:
        shown = (f'{LIBRARIES[name]} {_version(LIBRARIES[name])}'.strip() for name in works)
        yield Finding('libraries', ', '.join(shown))


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ''


def check_traps(version: Callable[[str], str]) -> Iterator[Finding]:
    """Combinations that load and then fail.

    Args:
        version: distribution -> version, empty when absent.
    """
    pillow, numpy, lvis = version('Pillow'), version('numpy'), version('lvis')
    if pillow and not compat.host_version_fits(pillow, '8', '13'):
        text = f"{pillow}: timm's RandAugment asks it for 0 bits, which 13 refuses"
        yield Finding('Pillow', text, BROKEN, 'pip install "Pillow<13"')
    if lvis and numpy and compat.host_version_fits(numpy, '1.24', '99'):
        text = f'lvis {lvis} dies with numpy {numpy}; use EVALVISMetric, which does without it'
        yield Finding('lvis', text, NOTE)


def check_disk(folder: Path, free: float) -> Finding:
    """Room for checkpoints.

    Args:
        folder: current one, where `work_dirs` will be.
        free: bytes.
    """
    text = f'{free / GB:.0f} GB free in {folder}'
    if free < GB:
        return Finding('disk', text, BROKEN, 'free some space: checkpoints could not be written')
    needed = 4 * CHECKPOINT_GB  # three are kept while the next one is written
    if free < needed * GB:
        text += f'; a run of EVA-g keeps up to {needed} GB (checkpoint.max_keep_ckpts=3)'
        return Finding('disk', text, NOTE)
    return Finding('disk', text)


def check_shared_memory(size: float | None) -> Iterator[Finding]:
    """Containers give little, and data loader workers then die of a bus error."""
    if size is not None and size < SHARED_MEMORY_GB * GB:
        text = f'{size / 1e6:.0f} MB in /dev/shm: data loader workers will die of it'
        yield Finding('shared memory', text, BROKEN, 'docker run --shm-size 16g ...')


def check_weights(environment: Mapping[str, str], home: Path) -> Finding:
    """Where published weights come from and which are here."""
    hub = environment.get('HF_HUB_CACHE')
    root = environment.get('HF_HOME') or str(
        Path(environment.get('XDG_CACHE_HOME') or home / '.cache', 'huggingface')
    )
    cache = Path(hub or Path(root, 'hub')).expanduser()
    files = sorted({p.name for p in cache.glob('models--BAAI--EVA/snapshots/*/eva_*')})
    endpoint = environment.get('HF_ENDPOINT', 'https://huggingface.co')
    offline = environment.get('HF_HUB_OFFLINE', '0').upper() in ('1', 'TRUE', 'YES', 'ON')
    text = f'{", ".join(files) or "none yet"} in {cache}, from {endpoint}'
    if not endpoint.startswith(('https://', 'http://')):
        remedy = f'export HF_ENDPOINT=https://{endpoint}'
        return Finding('weights', f'{text}, which is no address', BROKEN, remedy)
    if offline:
        return Finding('weights', f'{text}; HF_HUB_OFFLINE forbids downloads', NOTE)
    return Finding('weights', text)


# ---------------------------------------------------------------------------------------- reporting


def examine() -> list[Finding]:
    """Look at everything; takes some seconds."""
    answers = run_probes()
    torch = answers['torch']
    findings = [
        check_python(sys.version_info[:3], sys.executable),
        check_torch(torch),
        *check_torchvision(answers['torchvision'], torch),
        check_gpu(torch, driver_gpus(), os.environ),
        check_host('mmengine', answers['mmengine'], needed=True),
        check_operators(answers['operators'], torch),
        check_host('mmdet', answers['mmdet'], needed=True),
        check_host('mmseg', answers['mmseg'], needed=False),
        check_video(answers['mmaction']),
    ]
    for host in compat.HOSTS:
        findings += check_duplicates(host, distributions_of(host))
    findings += check_opencv(distributions_of('cv2'))
    findings += check_libraries(answers['libraries'])
    findings += check_traps(_version)
    findings.append(check_disk(Path.cwd(), shutil.disk_usage('.').free))
    shm = Path('/dev/shm')
    findings += check_shared_memory(shutil.disk_usage(shm).total if shm.is_dir() else None)
    findings.append(check_weights(os.environ, Path.home()))
    return findings


def report(findings: list[Finding]) -> str:
    """The screen: a line per finding, then each problem with what mends it."""
    width = max(len(finding.name) for finding in findings)
    lines = [f'eva_mm {eva_mm.__version__} on {platform.platform(terse=True)}', '']
    for f in findings:
        mark = '' if f.level == OK else f.level
        start = f'{mark:>6}  {f.name:<{width}}  '
        indent = ' ' * len(start)
        lines += textwrap.wrap(
            start + f.text,
            COLUMNS,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    lines.append('')
    problems: dict[str, list[str]] = {}
    for f in findings:
        if f.level == BROKEN:
            remedy = '\n'.join(line.strip() for line in f.remedy.splitlines())
            problems.setdefault(remedy, []).append(f.name)
    if not problems:
        lines.append('Nothing is broken.')
    for number, (remedy, names) in enumerate(problems.items(), start=1):
        lines.append(
            f'{number}. {", ".join(names)}: mend {"it" if len(names) == 1 else "them"} with'
        )
        lines += [f'       {line}' for line in remedy.splitlines()]
    if len(problems) > 2:
        lines.append('In a checkout, `make clean-env env` builds a tested environment anew.')
    return '\n'.join(lines)


def main() -> int:
    """Print the report; the exit status is 1 when something is broken."""
    findings = examine()
    print(report(findings))
    return int(any(finding.level == BROKEN for finding in findings))
