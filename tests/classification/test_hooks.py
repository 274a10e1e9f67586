"""Hooks that need more than one process."""

from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp

from eva_mm.classification import BroadcastBuffersHook

from ..helpers import free_port


def _broadcast(rank, port, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    norm = torch.nn.BatchNorm1d(3, affine=False)
    norm.train()(torch.arange(6.0).reshape(2, 3) + 10 * rank)
    BroadcastBuffersHook().before_val(SimpleNamespace(model=norm))
    queue.put((rank, {k: v.tolist() for k, v in norm.state_dict().items()}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_evaluate_the_statistics_of_the_first():
    queue = mp.get_context('spawn').SimpleQueue()
    mp.spawn(_broadcast, (free_port(), queue), nprocs=2)
    found = dict(queue.get() for _ in range(2))
    assert found[0] == found[1]
    assert found[0]['running_mean'] == pytest.approx([0.15, 0.25, 0.35])
    assert found[0]['num_batches_tracked'] == 1
