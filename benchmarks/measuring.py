"""How time, memory and FLOPs are measured, and the device's ceilings that they are held against.

PyTorch and the standard library are all it needs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import peak_rss, reset_peak_rss, rss

ROOT = Path(__file__).resolve().parents[1]
TERA = 1e12
USUAL = 32 * 2**20  # bytes; the most that glibc raises its threshold to by itself


def the_device() -> str:
    """``'cuda'`` where there is a GPU, else ``'cpu'``."""
    import torch

    return 'cuda' if torch.cuda.is_available() else 'cpu'


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Seconds on the clock that one call takes, the GPU's work included."""
    import torch

    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def measure_time(run: Callable[[], object], repeats: int, device: str, warm_up: int = 2) -> float:
    """Median of the seconds that a function takes, after ``warm_up`` calls that do not count."""
    return side_by_side({'': run}, repeats, device, warm_up)['']


def side_by_side(
    runs: Mapping[Any, Callable[[], object]], repeats: int, device: str, warm_up: int = 1
) -> dict[Any, float]:
    """Median seconds of several functions, called in turn.

    In turn, so that what else the machine does falls on all of them alike.
    """
    seconds = {name: [] for name in runs}
    for i in range(warm_up + repeats):
        for name, run in runs.items():
            taken = seconds_of(run, device)
            if i >= warm_up:
                seconds[name].append(taken)
    return {name: statistics.median(each) for name, each in seconds.items()}


class Memory:
    """Peak of what is held above the start: allocated on a GPU, resident in a CPU's process."""

    def __init__(self, device: str) -> None:
        import torch

        self.cuda = torch.cuda if device == 'cuda' else None
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
            self.start = self.cuda.memory_allocated()
        else:
            reset_peak_rss()
            self.start = rss()

    def restart(self) -> None:
        """Count the peak anew, above the same start."""
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
        else:
            reset_peak_rss()

    def peak(self) -> int:
        """Bytes."""
        held = self.cuda.max_memory_allocated() if self.cuda else peak_rss()
        return held - self.start


def set_allocator(threshold: int) -> None:
    """Let glibc give freed blocks of more bytes back to the system at once, smaller ones late.

    A child gives everything back, which makes peaks exact; but every new tensor then costs page
    faults that an ordinary run does not have. So memory is measured first, and time then, with
    :data:`USUAL`.
    """
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, 'mallopt'):  # glibc's numbers of the thresholds to map and to trim
        libc.mallopt(-3, threshold)
        libc.mallopt(-1, 2 * threshold)


def in_child(module: str, *args: str) -> dict:
    """Run ``python -m benchmarks.<module> args...``, whose last line is JSON.

    In a process of its own, so that memory is of what it measures alone.

    Raises:
        RuntimeError: it failed; with what it wrote to its error stream.
    """
    command = [sys.executable, '-m', f'benchmarks.{module}', *args]
    # What is freed goes back to the system at once, instead of staying in the allocator's hands.
    env = dict(os.environ, MALLOC_MMAP_THRESHOLD_='65536')
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f'{command} failed:\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of the matrix products, convolutions and attentions that a function computes."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matmul_ceiling(device: str, dtype) -> float:
    """Most FLOP/s that square matrix products reach on a device."""
    import torch

    sides = (2048, 4096, 8192) if device == 'cuda' else (512, 1024, 2048)
    best = 0.0
    for side in sides:
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        best = max(best, 2 * side**3 / measure_time(lambda a=a, b=b: a @ b, 10, device))
    return best


def copy_ceiling(device: str) -> float:
    """Bytes per second read and written by a large copy on a device."""
    import torch

    source = torch.empty((2**30 if device == 'cuda' else 2**28) // 4, device=device).normal_()
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return moved / measure_time(lambda: target.copy_(source), 10, device)


def ceilings_note(device: str, dtype) -> tuple[float, str]:
    """FLOP/s of the best matrix product, and a sentence that tells it and the copy's speed.

    Measured in a process of its own, so that this one holds nothing on the device.
    """
    name = str(dtype).removeprefix('torch.')
    found = in_child('measuring', device, name)
    return found['flops'], (
        f"The device's ceilings, measured in this run: {found['flops'] / TERA:.2f} TFLOP/s for a "
        f'square matrix product in {name}, {found["copied"] / 1e9:.0f} GB/s read and written by a '
        'large copy.'
    )


def measure_ceilings(device: str, dtype_name: str) -> dict[str, float]:
    """``flops`` per second of matrix products, and ``copied`` bytes per second."""
    import torch

    set_allocator(USUAL)
    dtype = getattr(torch, dtype_name)
    return dict(flops=matmul_ceiling(device, dtype), copied=copy_ceiling(device))


if __name__ == '__main__':
    print(json.dumps(measure_ceilings(*sys.argv[1:])))
