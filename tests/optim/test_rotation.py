"""Test the transformation of Flora's state into other bases."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from astralora.common.errors import ConfigurationError
from astralora.lowrank import OIALR, RotatesMoments
from astralora.lowrank.moments import rotate_moments
from astralora.optim import STORAGES, Flora

STATES: dict[str, dict[str, Any]] = {
    "no momentum": {},
    "dense": {"beta1": 0.5},
    "compressed": {"beta1": 0.3, "rank": 8, "kappa": 20},
    "orthonormal": {"beta1": 0.3, "rank": 8, "kappa": 20, "projection": "orthonormal"},
    "whole second moment": {"beta1": 0.3, "rank": 8, "kappa": 20, "factorize_second_moment": False},
    "8 bits": {"beta1": 0.3, "rank": 8, "kappa": 20, "quantization": True},
    "8 bits, dense": {"beta1": 0.5, "quantization": True, "factorize_second_moment": False},
}
states = pytest.mark.parametrize("options", STATES.values(), ids=STATES)


def basis(rows: int, rank: int, generator: torch.Generator) -> Tensor:
    Q: Tensor = torch.linalg.qr(torch.randn(rows, rank, dtype=torch.float64, generator=generator))[0]
    return Q


def stepped_once(shape: tuple[int, ...], **options: Any) -> tuple[Flora, nn.Parameter]:
    """Return an optimizer after one step on a fixed gradient, and its parameter."""
    parameter = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = Flora([parameter], lr=0.1, scale_parameter=False, **options)
    parameter.grad = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    optimizer.step()
    return optimizer, parameter


def core(rank: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(rank, rank, dtype=torch.float64))


def momentum(optimizer: Flora, parameter: nn.Parameter) -> Tensor:
    """Return the next step with a zero gradient: beta1 m, times the learning rate."""
    optimizer, parameter = copy.deepcopy((optimizer, parameter))
    parameter.grad = torch.zeros_like(parameter)
    before = parameter.detach().clone()
    optimizer.step()
    group = optimizer.param_groups[0]
    scaled: Tensor = (before - parameter.detach()) / (group["lr"] * group["beta1"])
    return scaled


@pytest.mark.parametrize("shape", [(12, 9), (12, 3, 3)], ids=["matrix", "convolution"])
def test_a_dense_momentum_transforms_exactly(shape: tuple[int, ...], generator: torch.Generator) -> None:
    optimizer, weight = stepped_once(shape, beta1=0.9)
    m = momentum(optimizer, weight).flatten(1)
    U, V, sigma = basis(12, 5, generator), basis(9, 5, generator), core(5)
    rotate_moments(optimizer, weight, sigma, U, V)
    torch.testing.assert_close(momentum(optimizer, sigma), U.T @ m @ V)
    assert list(optimizer.state) == [sigma]
    assert float(optimizer.state[sigma]["step"]) == 1


@pytest.mark.parametrize("projection", ["gaussian", "orthonormal"])
@pytest.mark.parametrize("cut", [0, 3], ids=["whole", "cut"])
def test_a_compressed_momentum_transforms_without_bias(projection: str, cut: int, generator: torch.Generator) -> None:
    # With bases near the identity, a projection that depends on the old one would add the most bias.
    n, rank, draws = 10, 4, 600
    U = torch.linalg.qr(torch.eye(n) + 0.1 * torch.randn(n, n, generator=generator))[0].double()[:, : n - cut]
    V = torch.linalg.qr(torch.eye(n) + 0.1 * torch.randn(n, n, generator=generator))[0].double()[:, : n - cut]
    exact, weight = stepped_once((n, n), beta1=0.5)
    m = momentum(exact, weight)
    found = []
    for seed in range(draws):
        optimizer, weight = stepped_once((n, n), beta1=0.5, rank=rank, kappa=100, projection=projection, seed=seed)
        sigma = core(n - cut)
        rotate_moments(optimizer, weight, sigma, U, V)
        assert tuple(optimizer.state[sigma]["moment"].shape) == (n - cut, rank)
        found.append(momentum(optimizer, sigma))
    mean, error = torch.stack(found).mean(dim=0), torch.stack(found).std(dim=0) / draws**0.5
    assert bool(((mean - U.T @ m @ V).abs() < 5 * error).all())


def test_an_exact_projection_transforms_exactly(generator: torch.Generator) -> None:
    options: dict[str, Any] = {"beta1": 0.5, "projection": "orthonormal"}
    exact, plain = stepped_once((8, 8), **options)
    optimizer, weight = stepped_once((8, 8), rank=8, **options)
    U, V = basis(8, 8, generator), basis(8, 8, generator)
    rotate_moments(optimizer, weight, weight, U, V)
    torch.testing.assert_close(momentum(optimizer, weight), U.T @ momentum(exact, plain) @ V)


def test_a_core_smaller_than_the_rank_gets_a_dense_momentum(generator: torch.Generator) -> None:
    optimizer, weight = stepped_once((16, 12), beta1=0.5, rank=8)
    m = momentum(optimizer, weight)
    U, V, sigma = basis(16, 6, generator), basis(12, 6, generator), core(6)
    rotate_moments(optimizer, weight, sigma, U, V)
    assert tuple(optimizer.state[sigma]["moment"].shape) == (6, 6)
    torch.testing.assert_close(momentum(optimizer, sigma), U.T @ m @ V)


def test_a_weight_that_is_too_long_to_be_compressed_gets_a_compressed_core(generator: torch.Generator) -> None:
    optimizer, weight = stepped_once((80, 16), beta1=0.5, rank=4)
    assert tuple(optimizer.state[weight]["moment"].shape) == (80, 16)
    sigma = core(16)
    rotate_moments(optimizer, weight, sigma, basis(80, 16, generator), basis(16, 16, generator))
    assert tuple(optimizer.state[sigma]["moment"].shape) == (16, 4)


def test_8_bits_add_an_error_of_at_most_half_a_code(generator: torch.Generator) -> None:
    optimizer, weight = stepped_once((12, 12), beta1=0.5, quantization=True, factorize_second_moment=False)
    m, v = decoded(optimizer, weight)
    U, V, sigma = basis(12, 7, generator), basis(12, 7, generator), core(7)
    rotate_moments(optimizer, weight, sigma, U, V)
    m, roots = U.T @ m @ V, (U.square().T @ v @ V.square()).sqrt()
    found_m, found_v = decoded(optimizer, sigma)
    assert float((found_m - m).abs().max()) <= float(m.abs().max()) / 254 * (1 + 1e-6)
    assert float((found_v.sqrt() - roots).abs().max()) <= float(roots.max()) / 510 * (1 + 1e-6)
    assert [optimizer.state[sigma][name].dtype for name in ("moment", "square")] == [torch.int8, torch.uint8]


def decoded(optimizer: Flora, parameter: nn.Parameter) -> tuple[Tensor, Tensor]:
    storage, state = STORAGES[True](), optimizer.state[parameter]
    m, v = storage.get(state, "moment", signed=True), storage.get(state, "square", signed=False)
    assert m is not None
    assert v is not None
    return m, v


@pytest.mark.parametrize("shape", [(12, 9), (12, 3, 3)], ids=["matrix", "convolution"])
@pytest.mark.parametrize("factorize", [False, True], ids=["whole", "factorised"])
def test_second_moments_transform_as_those_of_adam(
    shape: tuple[int, ...], factorize: bool, generator: torch.Generator
) -> None:
    optimizer, weight = stepped_once(shape, factorize_second_moment=factorize)
    v = dense(optimizer.state[weight]).flatten(1)
    U, V, sigma = basis(12, 5, generator), basis(9, 5, generator), core(5)
    rotate_moments(optimizer, weight, sigma, U, V)
    after = optimizer.state[sigma]
    turned = U.square().T @ v @ V.square()
    if factorize:
        torch.testing.assert_close(after["rows"], turned.mean(dim=1))
        torch.testing.assert_close(after["columns"], turned.mean(dim=0))
    else:
        torch.testing.assert_close(after["square"], turned)


def dense(state: dict[str, Tensor]) -> Tensor:
    """Return Adafactor's v_ij = R_i C_j / mean(R)."""
    if "square" in state:
        return state["square"]
    rows, columns = state["rows"], state["columns"]
    return torch.einsum("...i,...j,...->...ij", rows, columns, 1 / rows.mean(dim=-1))


def test_a_parameter_in_no_group_is_refused(generator: torch.Generator) -> None:
    optimizer, weight = stepped_once((6, 6), beta1=0.5)
    with pytest.raises(ConfigurationError, match=r"of shape \(3, 3\) is in no group of this optimizer"):
        optimizer.rotate_moments(weight, core(3), basis(6, 3, generator), basis(6, 3, generator))
    assert list(optimizer.state) == [weight], "no state was changed"


# -- under OIALR ------------------------------------------------------------------------------


def net(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3))


def loss(model: nn.Module, seed: int, size: int = 64) -> Tensor:
    """Return the loss of a regression on a teacher of low rank."""
    teacher = torch.randn(24, 3, generator=torch.Generator().manual_seed(7)) / 24**0.5
    x = torch.randn(size, 24, generator=torch.Generator().manual_seed(seed))
    mean_square: Tensor = (model(x) - (x @ teacher).tanh()).square().mean()
    return mean_square


def train(model: nn.Module, optimizer: Flora, oialr: OIALR, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        loss(model, step).backward()
        optimizer.step()
        oialr.step()


def start(options: dict[str, Any], seed: int = 0, lr: float = 3e-3, **more: Any) -> tuple[nn.Module, Flora, OIALR]:
    model = net(seed)
    optimizer = Flora(model.parameters(), lr=lr, scale_parameter=False, **options)
    schedule: dict[str, Any] = {"delay": 40, "stability_frequency": 10, "network_layer_perc_step": 1.0, "min_rank": 4}
    return model, optimizer, OIALR(model, optimizer, **{**schedule, "sigma_cutoff_fraction": 0.3, **more})


@states
def test_the_loss_continues_to_fall(options: dict[str, Any]) -> None:
    model, optimizer, oialr = start(options, delay=100, sigma_cutoff_fraction=0.999)
    assert isinstance(optimizer, RotatesMoments)
    train(model, optimizer, oialr, 0, 115)
    assert list(oialr.ranks.values()) == [6, 6], "below the rank of the momentum"
    assert set(optimizer.state) == {parameter for parameter in model.parameters() if parameter.requires_grad}
    oialr.delay = 10**6
    before = loss(model, 10**6, 1000).detach()
    train(model, optimizer, oialr, 115, 265)
    assert float(loss(model, 10**6, 1000).detach()) < 0.8 * float(before)


@states
def test_a_fresh_model_continues_exactly_after_a_cut(options: dict[str, Any]) -> None:
    first = start(options)
    train(*first, 0, 55)
    assert max(first[2].ranks.values()) < 24
    second = model, optimizer, oialr = start(options, seed=1)
    saved = copy.deepcopy([part.state_dict() for part in first])
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    oialr.load_state_dict(saved[2])
    for parts in (first, second):
        train(*parts, 55, 80)
    continued, uninterrupted = (parts[0].state_dict() for parts in (second, first))
    assert continued.keys() == uninterrupted.keys()
    assert all(torch.equal(continued[name], uninterrupted[name]) for name in continued)


@states
@pytest.mark.parametrize("criterion", ["time", "stability"])
def test_a_learning_rate_of_0_changes_no_parameter(options: dict[str, Any], criterion: Any) -> None:
    model, optimizer, oialr = start(
        options, lr=0.0, delay=2, stability_frequency=1, sigma_cutoff_fraction=0.0, criterion=criterion
    )
    x = torch.randn(8, 24, generator=torch.Generator().manual_seed(1))
    before = model(x).detach()
    train(model, optimizer, oialr, 0, 8)
    assert all(weight.is_factored for weight in oialr.weights)
    assert float((model(x).detach() - before).abs().max()) <= 1e-5
