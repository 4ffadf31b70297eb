"""Test steps inside the backward pass against steps after it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import astralora as al
from astralora.common.errors import ConfigurationError
from astralora.optim import Flora, fuse_backward

Batches = list[tuple[Tensor, Tensor]]
MODES: list[dict[str, Any]] = [
    {},
    {"beta1": 0.5, "rank": 2, "kappa": 3},
    {"beta1": 0.5, "rank": 2, "quantization": True},
]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches) -> list[float]:
    """Train in an ordinary loop, which works with and without `fuse_backward`."""
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    losses = []
    for x, y in batches * 3:
        loss = nn.functional.mse_loss(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("options", MODES, ids=str)
def test_fused_steps_equal_ordinary_steps(options: dict[str, Any], net: nn.Module, batches: Batches) -> None:
    plain = copy.deepcopy(net)
    expected = train(plain, Flora(plain.parameters(), lr=0.05, **options), batches)
    optimizer = Flora(net.parameters(), lr=0.05, **options)
    with fuse_backward(net, optimizer):
        assert train(net, optimizer, batches) == pytest.approx(expected, rel=1e-6)
    for fused, stepped in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(fused, stepped, rtol=1e-6, atol=1e-6)


def test_at_most_one_gradient_exists_at_a_time(net: nn.Module, batches: Batches) -> None:
    present = []

    class CountingFlora(Flora):
        def step_parameter(self, parameter: Tensor) -> None:
            present.append([p for p in net.parameters() if p.grad is not None])
            super().step_parameter(parameter)

    fuse_backward(net, CountingFlora(net.parameters(), lr=0.01))
    x, y = batches[0]
    nn.functional.mse_loss(net(x), y).backward()
    assert len(present) == len(list(net.parameters()))
    assert all(len(each) == 1 for each in present)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_learning_rate_of_zero_changes_no_parameter(
    options: dict[str, Any], net: nn.Module, batches: Batches
) -> None:
    optimizer = Flora(net.parameters(), lr=0.05, **options)
    fuse_backward(net, optimizer)
    train(net, optimizer, batches)
    before = copy.deepcopy(net.state_dict())
    optimizer.param_groups[0]["lr"] = 0.0
    train(net, optimizer, batches)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_gradients_stay_after_removal(net: nn.Module, batches: Batches) -> None:
    optimizer = Flora(net.parameters(), lr=0.01)
    fuse_backward(net, optimizer).remove()
    before = copy.deepcopy(net.state_dict())
    x, y = batches[0]
    nn.functional.mse_loss(net(x), y).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_parameters_frozen_at_the_start_are_stepped_by_the_optimizer(net: nn.Sequential, batches: Batches) -> None:
    net[3].requires_grad_(False)
    optimizer = Flora(net.parameters(), lr=0.01)
    fuse_backward(net, optimizer)
    net[3].requires_grad_(True)
    before = copy.deepcopy(net.state_dict())
    train(net, optimizer, batches)
    assert not any(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_tied_weights_are_stepped_once(a_throwaway_global_random_state: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.weight) @ self.weight.mT

    net = Tied()
    plain = copy.deepcopy(net)
    batches = [(torch.randn(4, 8), torch.randn(4, 8))]
    expected = train(plain, Flora(plain.parameters(), lr=0.05), batches)
    optimizer = Flora(net.parameters(), lr=0.05)
    fuse_backward(net, optimizer)
    assert train(net, optimizer, batches) == pytest.approx(expected, rel=1e-6)


def test_controls_of_a_device_are_stepped(simulated: Any, a_throwaway_global_random_state: Any) -> None:
    nets = []
    for fused in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 12))
            batches = [(torch.randn(4, 6), torch.randn(4, 12)) for _ in range(3)]
        al.attach(net, {"2": simulated("matvec", 16, 12)})
        optimizer = Flora(net.parameters(), lr=0.05)
        if fused:
            fuse_backward(net, optimizer)
        train(net, optimizer, batches)
        nets.append(net)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_an_optimizer_without_step_parameter_is_refused(net: nn.Module) -> None:
    adam: Any = torch.optim.Adam(net.parameters())
    with pytest.raises(ConfigurationError, match="Adam cannot step one parameter alone"):
        fuse_backward(net, adam)


def test_an_optimizer_of_another_model_is_refused(net: nn.Module) -> None:
    with pytest.raises(ConfigurationError, match="no trained parameter of the model"):
        fuse_backward(net, Flora([nn.Parameter(torch.ones(1))], lr=0.1))
