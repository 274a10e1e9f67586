"""What comes before the first image: imports, ``--help``, building a model of a billion parameters.

Every figure is of new processes, with files in the page cache.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from benchmarks.common import GIB, Table, benchmark
from benchmarks.measuring import ROOT, Memory, in_child

PACKAGES = ('onedl-mmengine', 'onedl-mmdetection')
TOOLS = ('train', 'test', 'infer', 'download', 'convert', 'look')


def seconds_of_process(*args: str) -> float:
    """Seconds on the clock of ``python args...`` in the checkout.

    Raises:
        RuntimeError: it failed; with what it wrote to its error stream.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *args], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f'python {" ".join(args)} failed:\n{done.stderr}')
    return time.perf_counter() - start


def commands() -> dict[str, Sequence[str]]:
    """What is started, the interpreter alone first."""
    shown = {f'tools/{tool}.py --help': (f'tools/{tool}.py', '--help') for tool in TOOLS}
    return {
        'python': ('-c', 'pass'),
        'import eva_mm': ('-c', 'import eva_mm'),
        'import torch': ('-c', 'import torch'),
        'import torch, eva_mm.vit': ('-c', 'import torch, eva_mm.vit'),
        **shown,
    }


def start_table(repeats: int) -> Table:
    """Medians of processes, called in turn after one that does not count."""
    seconds = {name: [] for name in commands()}
    for i in range(1 + repeats):
        for name, args in commands().items():
            taken = seconds_of_process(*args)
            if i:
                seconds[name].append(taken)
    found = {name: statistics.median(each) for name, each in seconds.items()}
    rows = [(name, f'{s:.2f}', f'{s - found["python"]:.2f}') for name, s in found.items()]
    notes = [f'Medians of {repeats} processes on the clock, in turn.']
    header = ('command', 'seconds', 'above python')
    return Table(header, rows, 'Start of a process', notes, PACKAGES)


# ---------------------------------------------------------------------------------------- building


def builders(size: str) -> dict[str, Callable[[], object]]:
    """Ways to build a model; detection only where mmdet is."""
    import torch

    from eva_mm.vit import EVAVisionTransformer

    def on_meta():
        with torch.device('meta'):
            return EVAVisionTransformer(size, num_classes=1000)

    ways = {
        'classifier, initialised': lambda: EVAVisionTransformer(size, num_classes=1000),
        'classifier, on the meta device': on_meta,
    }
    if find_spec('mmdet') is not None:
        ways['detector, initialised'] = lambda: _detector(size)
    return ways


def _detector(size: str):
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    import eva_mm.detection  # noqa: F401  registers its modules
    from benchmarks.detector_step import model_config

    init_default_scope('mmdet')
    return MODELS.build(model_config(size, 1280).model)


def measure(way: str, size: str) -> dict[str, float]:
    """Build a model in this process: ``seconds``, imports left out, ``peak`` bytes, ``params``."""
    if way.startswith('detector'):
        _detector('tiny')  # imports and registers
    build = builders(size)[way]
    memory = Memory('cpu')
    start = time.perf_counter()
    model = build()
    seconds = time.perf_counter() - start
    params = sum(param.numel() for param in model.parameters())
    return dict(seconds=seconds, peak=memory.peak(), params=params)


def building_table(size: str) -> Table:
    """Each way in a process of its own."""
    import torch

    rows = []
    for way in builders(size):
        found = in_child('start_up', way, size)
        peak = f'{found["peak"] / GIB:.1f}'
        rows.append((way, f'{found["params"]:,}', f'{found["seconds"]:.1f}', peak))
    notes = [
        f'{torch.get_num_threads()} threads, one run each; imports are not in it. load_model and '
        '--dry-run build on the meta device.'
    ]
    header = ('what', 'parameters', 'seconds', 'peak, GiB')
    return Table(header, rows, f'Building a model of size {size}', notes, PACKAGES)


@benchmark(
    'start_up',
    "seconds of imports and of the tools' --help; of building a model",
    repeats=int,
    size=str,
)
def start_up(repeats: int = 7, size: str = 'giant') -> list[Table]:
    """Tables of processes and of models."""
    return [start_table(repeats), building_table(size)]


if __name__ == '__main__':
    print(json.dumps(measure(*sys.argv[1:])))
