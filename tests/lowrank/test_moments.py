"""Test the transformation of optimizer states into other bases."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from astralora import ConfigurationError
from astralora.lowrank import OIALR, RotatesMoments
from astralora.lowrank.moments import rotate_moments

from .conftest import basis, linear, square_net
from .test_oialr import ALWAYS, train


def stepped_once(
    make: Callable[[Any], optim.Optimizer], shape: tuple[int, ...]
) -> tuple[optim.Optimizer, nn.Parameter]:
    """Return an optimizer after one step on random gradients, and its parameter."""
    generator = torch.Generator().manual_seed(3)
    parameter = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = make([parameter])
    parameter.grad = torch.randn(shape, dtype=torch.float64, generator=generator)
    optimizer.step()
    return optimizer, parameter


def test_the_first_moment_of_a_weight_becomes_the_first_moment_of_its_core(generator: torch.Generator) -> None:
    optimizer, weight = stepped_once(lambda p: optim.Adam(p), (6, 2, 2))
    m = optimizer.state[weight]["exp_avg"].flatten(1)
    U, V = basis(6, 3, generator), basis(4, 3, generator)
    core = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
    rotate_moments(optimizer, weight, core, U, V)
    assert optimizer.param_groups[0]["params"] == [core]
    torch.testing.assert_close(optimizer.state[core]["exp_avg"], U.T @ m @ V)
    assert float(optimizer.state[core]["step"]) == 1
    assert weight not in optimizer.state


def test_the_second_moment_transforms_as_for_uncorrelated_entries(generator: torch.Generator) -> None:
    optimizer, weight = stepped_once(lambda p: optim.AdamW(p), (5, 4))
    v = optimizer.state[weight]["exp_avg_sq"].clone()
    U, V = basis(5, 5, generator), basis(4, 4, generator)
    draws = 20000
    g = v.sqrt() * torch.randn(draws, 5, 4, dtype=torch.float64, generator=generator)
    squares = (U.T @ g @ V).square()
    rotate_moments(optimizer, weight, weight, U, V)
    found = optimizer.state[weight]["exp_avg_sq"]
    assert bool(((squares.mean(dim=0) - found).abs() < 5 * squares.std(dim=0) / draws**0.5).all())
    torch.testing.assert_close(found.sum(), v.sum())


def test_a_constant_second_moment_stays_constant(generator: torch.Generator) -> None:
    optimizer, weight = stepped_once(lambda p: optim.RMSprop(p), (5, 4))
    optimizer.state[weight]["square_avg"].fill_(0.25)
    core = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
    rotate_moments(optimizer, weight, core, basis(5, 3, generator), basis(4, 3, generator))
    torch.testing.assert_close(optimizer.state[core]["square_avg"], torch.full((3, 3), 0.25, dtype=torch.float64))


def test_adams_first_moment_stays_the_average_of_the_gradients_in_the_newest_bases() -> None:
    model = square_net()
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    oialr = OIALR(model, optimizer, **{**ALWAYS, "delay": 4, "sigma_cutoff_fraction": 0.0})
    average = torch.zeros(24, 24, dtype=torch.float64)
    for step in range(8):
        x = torch.randn(16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        weight = oialr.weights[0]
        G = weight.trained.grad
        assert G is not None
        if weight.is_factored:  # the bases are square and contain the whole gradient
            U, V = weight.bases
            G = U @ G @ V.T
        average = 0.9 * average + 0.1 * G
        optimizer.step()
        oialr.step()
    U, V = oialr.weights[0].bases
    torch.testing.assert_close(U @ optimizer.state[oialr.weights[0].trained]["exp_avg"] @ V.T, average)


class RotatingSGD(optim.SGD):
    """Transform the momentum by a method of its own."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.05, momentum=0.9)
        self.rotations: list[tuple[torch.Size, torch.Size]] = []

    def rotate_moments(self, old: nn.Parameter, new: nn.Parameter, left: Tensor, right: Tensor) -> None:
        self.rotations.append((old.shape, new.shape))
        state = self.state.pop(old)
        state["momentum_buffer"] = left.to(old).T @ state["momentum_buffer"] @ right.to(old)
        self.state[new] = state


def test_an_optimizer_may_transform_its_own_state() -> None:
    weights = []
    for factored in (False, True):
        model = square_net()
        optimizer = RotatingSGD(model.parameters())
        assert isinstance(optimizer, RotatesMoments)
        oialr = OIALR(model, optimizer, **{**ALWAYS, "delay": 3, "sigma_cutoff_fraction": 0.0}) if factored else None
        train(model, optimizer, oialr, steps=8)
        weights.append(linear(model, 2).weight.detach())
        assert len(optimizer.rotations) == (2 * (1 + 6) if factored else 0), "one factorisation and six refreshes"
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-9)


def test_an_optimizer_with_an_unknown_state_is_refused_in_the_first_step() -> None:
    model = square_net()
    optimizer = optim.Rprop(model.parameters(), lr=0.01)
    oialr = OIALR(model, optimizer, **ALWAYS)
    with pytest.raises(ConfigurationError, match=r"Rprop keeps 'prev' .* give the optimizer a method rotate_moments"):
        train(model, optimizer, oialr, steps=1)
    assert not any(weight.is_factored for weight in oialr.weights)


def test_sgd_without_momentum_gets_no_state() -> None:
    model = square_net()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    train(model, optimizer, OIALR(model, optimizer, **ALWAYS), steps=2)
    assert not any(value is not None for state in optimizer.state.values() for value in state.values())
