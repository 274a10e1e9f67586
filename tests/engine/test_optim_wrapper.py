"""bf16 autocast on request."""

import pytest
import torch

from eva_mm.engine import BF16OptimWrapper


@pytest.mark.skipif(torch.cuda.is_available(), reason='about the behaviour on CPUs')
@pytest.mark.parametrize(('on_cpu', 'dtype'), [(True, torch.bfloat16), (False, torch.float32)])
def test_computes_in_bf16_on_request_and_keeps_fp32_weights(on_cpu, dtype):
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = BF16OptimWrapper(on_cpu=on_cpu, optimizer=optimizer)
    before = model.weight.detach().clone()
    with wrapper.optim_context(model):
        out = model(torch.ones(2, 4))
    wrapper.update_params(out.float().sum())
    assert out.dtype == dtype
    assert model.weight.dtype == torch.float32
    # The gradient of a sum over two rows of ones is 2 everywhere.
    assert torch.allclose(before - model.weight, torch.full((4, 4), 0.2), atol=1e-6)
