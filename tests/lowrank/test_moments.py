"""What optimizers remember, in other bases."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from astralora import ConfigurationError
from astralora.lowrank import OIALR, RotatesMoments
from astralora.lowrank.moments import rotate_moments

from .conftest import square_net
from .test_oialr import ALWAYS, train


def basis(rows: int, rank: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(rows, rank, dtype=torch.float64, generator=generator))[0]


def remembering(make: Callable[[Any], optim.Optimizer], shape: tuple[int, ...]) -> tuple[optim.Optimizer, nn.Parameter]:
    """An optimizer after one step on random gradients."""
    generator = torch.Generator().manual_seed(3)
    parameter = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = make([parameter])
    parameter.grad = torch.randn(shape, dtype=torch.float64, generator=generator)
    optimizer.step()
    return optimizer, parameter


def test_the_first_moment_of_a_weight_becomes_that_of_its_core(generator: torch.Generator) -> None:
    optimizer, weight = remembering(lambda p: optim.Adam(p), (6, 2, 2))
    m = optimizer.state[weight]["exp_avg"].flatten(1)
    U, V = basis(6, 3, generator), basis(4, 3, generator)
    core = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
    rotate_moments(optimizer, weight, core, U, V)
    assert optimizer.param_groups[0]["params"] == [core]
    torch.testing.assert_close(optimizer.state[core]["exp_avg"], U.T @ m @ V)
    assert float(optimizer.state[core]["step"]) == 1
    assert weight not in optimizer.state


def test_the_second_moment_is_that_of_uncorrelated_entries(generator: torch.Generator) -> None:
    optimizer, weight = remembering(lambda p: optim.AdamW(p), (5, 4))
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
    optimizer, weight = remembering(lambda p: optim.RMSprop(p), (5, 4))
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
        if weight.is_factored:  # square, so that nothing of the gradient is outside of the bases
            U, V = weight.bases
            G = U @ G @ V.T
        average = 0.9 * average + 0.1 * G
        optimizer.step()
        oialr.step()
    U, V = oialr.weights[0].bases
    torch.testing.assert_close(U @ optimizer.state[oialr.weights[0].trained]["exp_avg"] @ V.T, average)


class Projecting(optim.SGD):
    """Keeps its momentum in a form of its own, and knows how that turns."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.05, momentum=0.9)
        self.turned: list[tuple[torch.Size, torch.Size]] = []

    def rotate_moments(self, old: nn.Parameter, new: nn.Parameter, left: Tensor, right: Tensor) -> None:
        self.turned.append((old.shape, new.shape))
        state = self.state.pop(old)
        state["momentum_buffer"] = left.to(old).T @ state["momentum_buffer"] @ right.to(old)
        self.state[new] = state


def test_an_optimizer_may_turn_its_state_itself() -> None:
    found = []
    for switched in (False, True):
        model = square_net()
        optimizer = Projecting(model.parameters())
        assert isinstance(optimizer, RotatesMoments)
        oialr = OIALR(model, optimizer, **{**ALWAYS, "delay": 3, "sigma_cutoff_fraction": 0.0}) if switched else None
        train(model, optimizer, oialr, steps=8)
        found.append(model[2].weight.detach())
        assert len(optimizer.turned) == (2 * (1 + 6) if switched else 0), "conversion, and a refresh from then on"
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_an_optimizer_that_remembers_something_unknown_is_refused_in_the_first_step() -> None:
    model = square_net()
    optimizer = optim.Rprop(model.parameters(), lr=0.01)
    oialr = OIALR(model, optimizer, **ALWAYS)
    with pytest.raises(
        ConfigurationError, match=r"Rprop remembers 'prev' .* give the optimizer a method rotate_moments"
    ):
        train(model, optimizer, oialr, steps=1)
    assert not any(weight.is_factored for weight in oialr.weights)


def test_sgd_without_momentum_has_nothing_to_turn() -> None:
    model = square_net()
    optimizer = optim.SGD(model.parameters(), lr=0.01)
    train(model, optimizer, OIALR(model, optimizer, **ALWAYS), steps=2)
    assert not any(value is not None for state in optimizer.state.values() for value in state.values())
