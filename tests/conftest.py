"""Settings of the whole test run."""

import os

import pytest
import torch

# Beside other workers of pytest-xdist, threads of one would only wait for those of another. In the
# environment too, for the processes that tests start.
if 'PYTEST_XDIST_WORKER' in os.environ:
    workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ['OMP_NUM_THREADS'] = str(threads)
    torch.set_num_threads(threads)


# Whose registries the tests of a folder build from, whichever tests ran before them.
_SCOPES = dict(
    classification='mmengine',
    detection='mmdet',
    pretraining='mmengine',
    segmentation='mmseg',
    video='mmaction',
)


@pytest.fixture(autouse=True)
def _default_scope(request):
    if scope := _SCOPES.get(request.path.parent.name):
        from mmengine.registry import init_default_scope

        init_default_scope(scope)
