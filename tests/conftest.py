"""Settings of the whole test run."""

import os

import torch

# Beside other workers of pytest-xdist, threads of one would only wait for those of another. In the
# environment too, for the processes that tests start.
if 'PYTEST_XDIST_WORKER' in os.environ:
    workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ['OMP_NUM_THREADS'] = str(threads)
    torch.set_num_threads(threads)
