"""Test Flora as an optimizer: its state, its refusals, its steps, and saving and loading."""

import copy
import io
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import astralora as al
from astralora.common.errors import ConfigurationError
from astralora.optim import DivergingMomentumWarning, Flora, state_bytes
from astralora.training.checkpoint import load_state, save_state

pytestmark = pytest.mark.processors

MODES: list[dict[str, Any]] = [
    {},
    {"beta1": 0.9},
    {"beta1": 0.9, "rank": 4},
    {"beta1": 0.6, "rank": 4, "projection": "orthonormal", "kappa": 2},
    {"beta1": 0.6, "rank": 4, "kappa": 3},
    {"beta1": 0.9, "rank": 4, "quantization": True},
    {"beta1": 0.9, "quantization": True, "factorize_second_moment": False, "weight_decay": 0.1},
]
SHAPES = [(12, 16), (16, 12), (8,), (8, 3, 3, 3), (40, 4)]


@pytest.fixture
def parameters(generator: torch.Generator) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def steps(optimizer: torch.optim.Optimizer, first: int, last: int) -> list[Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for step in range(first, last):
        give_gradients(parameters, step)
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


def copies(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return [nn.Parameter(parameter.detach().clone()) for parameter in parameters]


# -- memory -------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "flora", "adam"), [((64, 64), 2_564, 32_772), ((256, 64), 9_476, 131_076)])
def test_the_state_is_as_small_as_published(shape: tuple[int, int], flora: int, adam: int) -> None:
    parameter = nn.Parameter(torch.ones(shape))
    optimizers = Flora([parameter], lr=0.01, rank=8, beta1=0.9), torch.optim.Adam([parameter])
    assert [state_bytes(optimizer) for optimizer in optimizers] == [0, 0]
    parameter.grad = torch.ones(shape)
    for optimizer in optimizers:
        optimizer.step()
    assert [state_bytes(optimizer) for optimizer in optimizers] == [flora, adam]
    assert optimizers[0].state_bytes() == flora


def test_a_quantized_state_takes_a_byte_per_number_and_a_scale_per_256() -> None:
    parameter = nn.Parameter(torch.ones(64, 64))
    optimizer = Flora([parameter], lr=0.01, rank=8, beta1=0.9, quantization=True)
    parameter.grad = torch.ones(64, 64)
    optimizer.step()
    assert optimizer.state_bytes() == (8 * 64 + 2 * 4) + 2 * (64 + 4) + 4


@pytest.mark.parametrize("shape", SHAPES)
def test_the_momentum_is_never_larger_than_the_weight(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.ones(shape))
    optimizer = Flora([parameter], lr=0.01, rank=4, beta1=0.9)
    parameter.grad = torch.ones(shape)
    optimizer.step()
    assert optimizer.state[parameter]["moment"].numel() <= parameter.numel()


# -- refusals and warnings ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "lr is missing; pass it, or set relative_step=True"),
        ({"lr": 0.1, "relative_step": True}, "lr=0.1 would have no effect; leave one of them out"),
        ({"lr": 0.1, "warmup_init": True}, "warmup_init=True .* needs relative_step=True"),
        ({"lr": -0.1}, "lr must be at least 0, not -0.1"),
        ({"lr": math.nan}, "lr must be at least 0, not nan"),
        ({"lr": "fast"}, "lr must be at least 0, not 'fast'"),
        ({"lr": 0.1, "rank": 0}, "rank must be a whole number of at least 1, not 0"),
        ({"lr": 0.1, "rank": 2.5}, "rank must be a whole number of at least 1, not 2.5"),
        ({"lr": 0.1, "kappa": 0}, "kappa must be a whole number of at least 1, not 0"),
        ({"lr": 0.1, "beta1": 1.0}, "beta1 must be at least 0 and below 1, not 1.0"),
        ({"lr": 0.1, "beta1": -0.1}, "beta1 must be at least 0 and below 1, not -0.1"),
        ({"lr": 0.1, "decay_rate": 0.8}, "decay_rate must be at most 0, not 0.8"),
        ({"lr": 0.1, "clip_threshold": 0}, "clip_threshold must be above 0, not 0"),
        ({"lr": 0.1, "weight_decay": -1}, "weight_decay must be at least 0, not -1"),
        ({"lr": 0.1, "eps": 1e-8}, "eps must be two numbers of at least 0, .* not 1e-08"),
        ({"lr": 0.1, "projection": "sparse"}, "projection must be 'gaussian' or 'orthonormal', not 'sparse'"),
        ({"lr": 0.1, "quantization": 4}, "quantization must be True, False or 'bitsandbytes', not 4"),
    ],
)
def test_invalid_arguments_are_refused(options: dict[str, Any], message: str, parameters: list[nn.Parameter]) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Flora(parameters, **options)


def test_a_group_with_invalid_options_is_refused_and_not_added(parameters: list[nn.Parameter]) -> None:
    optimizer = Flora(parameters[:1], lr=0.1)
    with pytest.raises(ConfigurationError, match="rank must be"):
        optimizer.add_param_group({"params": parameters[1:], "rank": -1})
    assert len(optimizer.param_groups) == 1


def test_published_arguments_and_defaults() -> None:
    (group,) = Flora([nn.Parameter(torch.ones(1))], 0.1, None, 1000).param_groups
    del group["params"]
    assert group == {
        "lr": 0.1,
        "rank": None,
        "kappa": 1000,
        "eps": (1e-30, 1e-3),
        "clip_threshold": 1.0,
        "decay_rate": -0.8,
        "beta1": None,
        "weight_decay": 0.0,
        "scale_parameter": True,
        "relative_step": False,
        "warmup_init": False,
        "factorize_second_moment": True,
        "seed": 0,
        "quantization": False,
        "projection": "gaussian",
    }


@pytest.mark.parametrize(
    ("layout", "name"), [(torch.sparse_coo, "sparse"), (torch.strided, "complex")], ids=["sparse", "complex"]
)
def test_sparse_and_complex_gradients_are_refused(layout: torch.layout, name: str) -> None:
    dtype = torch.complex64 if name == "complex" else torch.float32
    parameter = nn.Parameter(torch.ones(3, 3, dtype=dtype))
    grad = torch.ones(3, 3, dtype=dtype)
    parameter.grad = grad.to_sparse() if layout == torch.sparse_coo else grad
    with pytest.raises(ConfigurationError, match="takes dense real gradients"):
        Flora([parameter], lr=0.1).step()


def momentum_after(steps: int, **options: Any) -> float:
    """Return the square of the momentum after steps with zero gradients, relative to the first step."""
    total = 0.0
    for seed in range(10):
        parameter = nn.Parameter(torch.ones(32, 32))
        optimizer = Flora([parameter], lr=0.0, seed=seed, **options)
        first = 0.0
        for step in range(steps):
            # Zero gradients give zero updates with any second moment.
            parameter.grad = torch.eye(32) if step == 0 else torch.zeros(32, 32)
            optimizer.step()
            first = first or float(optimizer.state[parameter]["moment"].square().sum())
        total += float(optimizer.state[parameter]["moment"].square().sum()) / first / 10
    return total


# 1 + d/r = 9 for gaussian, d/r = 8 for orthonormal; (0.95^(2 kappa)) 9 = 1 at kappa = 21.4.
@pytest.mark.parametrize("projection", ["gaussian", "orthonormal"])
def test_a_momentum_that_moves_too_often_diverges_with_a_warning(projection: str) -> None:
    options = {"rank": 4, "beta1": 0.95, "projection": projection}
    with pytest.warns(DivergingMomentumWarning, match=r"32 x 32 at rank 4 .* kappa of at least 2[12]"):
        assert momentum_after(40, kappa=4, **options) > 100
    # A little above the least kappa, eight moves multiply it by 0.02 on average.
    assert momentum_after(8 * 26, kappa=26, **options) < 1


@pytest.mark.parametrize("kappa", [21, 22])
def test_the_warning_starts_where_growth_equals_decay(kappa: int, recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    Flora([nn.Parameter(torch.ones(32, 32))], lr=0.1, rank=4, beta1=0.95, kappa=kappa)
    assert len(recwarn) == (0.95 ** (2 * kappa) * (1 + 32 / 4) >= 1)


def test_an_exact_projection_never_diverges() -> None:
    Flora([nn.Parameter(torch.ones(8, 8))], lr=0.1, rank=8, beta1=0.999, kappa=1, projection="orthonormal")


def test_added_groups_cause_the_warning_too(parameters: list[nn.Parameter]) -> None:
    optimizer = Flora(parameters[2:3], lr=0.1, rank=2, beta1=0.99, kappa=2)
    with pytest.warns(DivergingMomentumWarning):
        optimizer.add_param_group({"params": parameters[0]})


# -- stepping -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_learning_rate_of_zero_changes_no_parameter_despite_momentum(
    options: dict[str, Any], parameters: list[nn.Parameter]
) -> None:
    optimizer = Flora(parameters, lr=0.01, **options)
    before = steps(optimizer, 0, 4)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert all(torch.equal(a, b) for a, b in zip(before, steps(optimizer, 4, 8), strict=True))


@pytest.mark.parametrize("options", MODES, ids=str)
def test_descends_a_quadratic(options: dict[str, Any], generator: torch.Generator) -> None:
    target = torch.randn(12, 16, generator=generator)
    parameter = nn.Parameter(torch.zeros(12, 16))
    # A subspace of 4 of 12 dimensions must move to reach all of them.
    options = {"kappa": 20, **options, "weight_decay": 0.0}
    optimizer = Flora([parameter], lr=0.05, scale_parameter=False, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        parameter.grad = parameter.detach() - target
        optimizer.step()
        schedule.step()
    assert float((parameter.detach() - target).norm() / target.norm()) < 0.1


def test_the_momentum_is_the_dense_average_with_an_exact_projection(generator: torch.Generator) -> None:
    exact, dense = (nn.Parameter(torch.ones(12, 16, dtype=torch.float64)) for _ in range(2))
    options: dict[str, Any] = {"lr": 0.01, "beta1": 0.9}
    first = steps(Flora([exact], rank=12, kappa=3, projection="orthonormal", **options), 0, 10)
    second = steps(Flora([dense], **options), 0, 10)
    # The projection itself is orthonormal to double precision.
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-10)


def test_the_subspace_moves_every_kappa_steps(parameters: list[nn.Parameter]) -> None:
    optimizer = Flora(parameters[:1], lr=0.01, rank=2, beta1=0.9, kappa=20)
    numbers = []
    for step in range(45):
        steps(optimizer, step, step + 1)
        numbers.append(optimizer.state[parameters[0]]["subspace"])
    assert numbers == [0] * 19 + [1] * 20 + [2] * 6


def test_the_seed_determines_the_subspaces(parameters: list[nn.Parameter]) -> None:
    runs = [steps(Flora(copies(parameters), lr=0.01, rank=4, beta1=0.9, seed=seed), 0, 4) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    changed = [not torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True)]
    assert changed == [True, True, False, False, False], "the compressed ones only"


def test_equal_parameters_have_different_subspaces(generator: torch.Generator) -> None:
    pair = [nn.Parameter(torch.ones(12, 16)) for _ in range(2)]
    optimizer = Flora(pair, lr=0.01, rank=4, beta1=0.9)
    for _ in range(2):
        for parameter in pair:
            parameter.grad = torch.ones(12, 16)
        optimizer.step()
    assert not torch.equal(*pair)


def test_a_closure_computes_gradients(parameters: list[nn.Parameter]) -> None:
    optimizer = Flora(parameters, lr=0.01)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = sum((parameter.square().sum() for parameter in parameters), torch.zeros(()))
        loss.backward()
        return loss.detach()

    first = optimizer.step(closure)
    assert optimizer.step(closure) < first


def test_an_added_group_is_trained(parameters: list[nn.Parameter]) -> None:
    optimizer = Flora(parameters[:1], lr=0.01, rank=4, beta1=0.9)
    steps(optimizer, 0, 2)
    optimizer.add_param_group({"params": parameters[1:], "lr": 0.1, "rank": 2})
    before = [parameter.detach().clone() for parameter in parameters]
    after = steps(optimizer, 2, 4)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert optimizer.state[parameters[1]]["moment"].shape == (16, 2)


def test_adding_a_group_does_not_change_the_steps_of_others(parameters: list[nn.Parameter]) -> None:
    alone, joined = copies(parameters[:1]), copies(parameters[:1])
    expected = steps(Flora(alone, lr=0.01, rank=4, beta1=0.9), 0, 4)
    optimizer = Flora(joined, lr=0.01, rank=4, beta1=0.9)
    steps(optimizer, 0, 2)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(8, 8))]})
    for step in (2, 3):
        give_gradients(joined, step)
        optimizer.step()
    assert torch.equal(joined[0].detach(), expected[0])


def test_an_unfrozen_parameter_is_trained() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    optimizer = Flora(model.parameters(), lr=0.01, rank=2, beta1=0.9)
    weight = model.get_parameter("0.weight")
    before = weight.detach().clone()
    for frozen in (True, False):
        model[0].requires_grad_(not frozen)
        optimizer.zero_grad()
        model(torch.ones(2, 8)).square().sum().backward()
        optimizer.step()
        assert torch.equal(weight.detach(), before) == frozen


@pytest.fixture(autouse=True)
def models_may_draw(a_throwaway_global_random_state: Any) -> None:
    """Allow ``nn.Linear`` to draw from the global generator."""


def test_a_parameter_of_another_optimizer_is_refused(parameters: list[nn.Parameter]) -> None:
    with pytest.raises(ConfigurationError, match=r"of shape \(16, 12\) is in no group of this optimizer"):
        Flora(parameters[:1], lr=0.1).step_parameter(parameters[1])


# -- saving and loading -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["as it is", "torch.save", "run folder", "deepcopy"])
@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_restored_state_continues_bit_for_bit(
    options: dict[str, Any], way: str, parameters: list[nn.Parameter], tmp_path: Path
) -> None:
    expected = steps(Flora(copies(parameters), lr=0.01, **options), 0, 9)
    optimizer = Flora(parameters, lr=0.01, **options)
    steps(optimizer, 0, 5)
    state = optimizer.state_dict()
    if way == "torch.save":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    if way == "run folder":
        save_state(tmp_path, state)
        found = load_state(tmp_path)
        assert found is not None
        state = found
    resumed = copy.deepcopy(optimizer) if way == "deepcopy" else Flora(copies(parameters), lr=0.5, seed=7)
    if way != "deepcopy":
        resumed.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(steps(resumed, 5, 9), expected, strict=True))


def test_codes_stay_integers_after_saving_and_loading(parameters: list[nn.Parameter]) -> None:
    optimizer = Flora(parameters, lr=0.01, rank=4, beta1=0.9, quantization=True)
    steps(optimizer, 0, 2)
    resumed = Flora(copies(parameters), lr=0.01, rank=4, beta1=0.9, quantization=True)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state_bytes() == optimizer.state_bytes()
    ((first, *_),) = (group["params"] for group in resumed.param_groups)
    assert resumed.state[first]["moment"].dtype == torch.int8
    assert resumed.state[first]["rows"].dtype == torch.uint8


def test_the_float32_state_of_half_precision_stays_float32_after_loading(parameters: list[nn.Parameter]) -> None:
    halves = [nn.Parameter(parameter.detach().bfloat16()) for parameter in parameters]
    optimizer = Flora(halves, lr=0.01, rank=4, beta1=0.9)
    steps(optimizer, 0, 2)
    resumed = Flora(copies(halves), lr=0.01, rank=4, beta1=0.9)
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state_bytes() == optimizer.state_bytes()
    assert all(torch.equal(a, b) for a, b in zip(steps(resumed, 2, 4), steps(optimizer, 2, 4), strict=True))


def test_two_optimizers_that_load_the_same_state_do_not_share_it(parameters: list[nn.Parameter]) -> None:
    optimizer = Flora(parameters, lr=0.01, rank=4, beta1=0.9)
    steps(optimizer, 0, 2)
    state = optimizer.state_dict()
    pair = [Flora(copies(parameters), lr=0.01, rank=4, beta1=0.9) for _ in range(2)]
    for each in pair:
        each.load_state_dict(state)
    first, second = (steps(each, 2, 5) for each in pair)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_changes_by_the_users_loading_hooks_are_kept(parameters: list[nn.Parameter]) -> None:
    optimizer = Flora(parameters, lr=0.01)
    steps(optimizer, 0, 2)
    resumed = Flora(copies(parameters), lr=0.01)
    resumed.register_load_state_dict_pre_hook(lambda _, state: {**state, "state": {}})
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.state_bytes() == 0


# -- with devices ---------------------------------------------------------------------------


def test_the_digital_part_around_a_device_is_trained(simulated: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))
    al.attach(model, {"2": simulated("matvec", 16, 12)})
    optimizer = Flora(model.parameters(), lr=0.02, rank=4, kappa=10, beta1=0.8, scale_parameter=False)
    x, y = torch.randn(32, 8), torch.randint(4, (32,))
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    controls = model.get_parameter("2.controls")
    assert optimizer.state[controls]["moment"].shape == controls.shape
