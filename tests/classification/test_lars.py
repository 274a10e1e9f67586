"""LARS against its formula."""

import pytest
import torch

from eva_mm.classification import EVALARS


def test_matrices_are_scaled_and_vectors_are_not():
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 4), torch.randn(3)
    params = [torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())]
    optimizer = EVALARS(params, lr=0.5, momentum=0.9, weight_decay=0.1, trust_coefficient=0.01)
    moving_weight, moving_bias = torch.zeros(3, 4), torch.zeros(3)
    for _ in range(4):
        gradients = [torch.randn(3, 4), torch.randn(3)]
        for param, gradient in zip(params, gradients):
            param.grad = gradient.clone()
        optimizer.step()
        update = gradients[0] + 0.1 * weight
        update = 0.01 * weight.norm() / update.norm() * update
        moving_weight = 0.9 * moving_weight + update
        weight = weight - 0.5 * moving_weight
        moving_bias = 0.9 * moving_bias + gradients[1]
        bias = bias - 0.5 * moving_bias
        torch.testing.assert_close(params[0].data, weight)
        torch.testing.assert_close(params[1].data, bias)


def test_step_does_not_depend_on_the_scale_of_the_gradient():
    steps = []
    for scale in (1e-3, 1e3):
        param = torch.nn.Parameter(torch.ones(2, 2))
        param.grad = scale * torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        EVALARS([param], lr=1.0).step()
        steps.append(1 - param.data)
    torch.testing.assert_close(steps[0], steps[1])
    assert float(steps[0].norm()) == pytest.approx(0.001 * 2, rel=1e-4)


@pytest.mark.parametrize('zero', ['weight', 'gradient'])
def test_zeros_take_plain_steps(zero):
    param = torch.nn.Parameter(torch.zeros(2, 2) if zero == 'weight' else torch.ones(2, 2))
    param.grad = torch.ones(2, 2) if zero == 'weight' else torch.zeros(2, 2)
    before = param.detach().clone()
    EVALARS([param], lr=0.1).step()
    torch.testing.assert_close(param.data, before - 0.1 * param.grad)


def test_negative_arguments():
    with pytest.raises(ValueError, match='momentum must not be negative'):
        EVALARS([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=-1)
