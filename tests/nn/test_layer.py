"""Test the layer as a torch module: shapes, dtypes, gradients, usage and state."""

import copy
import io
from math import sqrt
from typing import Any

import pytest
import torch
from torch import nn

from astralora import BlackBoxLinear, ConfigurationError, Session
from astralora.devices import Budget, BudgetExceeded, OutOfRange
from astralora.simulators import KINDS, Impairments, SimulatedDevice
from astralora.simulators.physics import LinearPhysics

pytestmark = pytest.mark.processors


def layer_on(simulated: Any, kind: str = "slm", n: int = 8, m: int = 6, **options: Any) -> BlackBoxLinear:
    device = {key: options.pop(key) for key in ("impairments", "input_range") if key in options}
    chip = options.pop("chip", 0)
    return BlackBoxLinear(simulated(kind, n, m, seed=chip, **device), **options)


def spending(layer: BlackBoxLinear) -> dict[str, tuple[int, int]]:
    return {name: (part.programs, part.vectors) for name, part in layer.session.usage_by_purpose.items()}


# -- forward -----------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 4)])
def test_any_leading_shape_is_accepted(leading: tuple[int, ...], simulated: Any, generator: torch.Generator) -> None:
    layer = layer_on(simulated)
    x = torch.randn(*leading, 8, generator=generator)
    y = layer(x)
    assert y.shape == (*leading, 6)
    torch.testing.assert_close(y.reshape(-1, 6), layer(x.reshape(-1, 8)))


def test_output_is_gain_times_device_plus_bias(simulated: Any, generator: torch.Generator) -> None:
    layer = layer_on(simulated)
    x = 10 * torch.randn(5, 8, generator=generator)
    assert layer.gain is not None
    assert layer.bias is not None
    with torch.no_grad():
        layer.gain.fill_(3.0)
        layer.bias.copy_(torch.arange(6.0))
    A = torch.cos(layer.controls.detach()).reshape(6, 8) / sqrt(8)
    torch.testing.assert_close(layer(x), 3 * x @ A.T + torch.arange(6.0))


def test_gain_and_bias_can_be_left_out(simulated: Any, generator: torch.Generator) -> None:
    layer = layer_on(simulated, gain=False, bias=False)
    x = torch.randn(5, 8, generator=generator)
    A = torch.cos(layer.controls.detach()).reshape(6, 8) / sqrt(8)
    torch.testing.assert_close(layer(x), x @ A.T)
    assert [name for name, _ in layer.named_parameters()] == ["controls"]


@pytest.mark.filterwarnings("ignore::astralora.nn.ExpensiveGradientWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_initial_outputs_are_as_strong_as_those_of_a_new_linear_layer(
    kind: str, simulated: Any, generator: torch.Generator
) -> None:
    layer = layer_on(simulated, kind, 64, 64)
    x = torch.randint(0, 2, (200, 64), generator=generator) * 2.0 - 1
    # 16 vectors times 64 outputs set the gain to a few per cent; correlated outputs add to the error.
    assert float(layer(x).detach().square().mean().sqrt()) == pytest.approx(sqrt(1 / 3), rel=0.35)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float32_and_float64_work(dtype: torch.dtype, simulated: Any) -> None:
    layer = layer_on(simulated, dtype=dtype, impairments="lab")
    x = torch.ones(5, 8, dtype=dtype, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.dtype == dtype
    assert layer.controls.grad is not None
    assert layer.controls.grad.dtype == dtype
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_autocast_gives_the_dtype_of_a_linear_layer(simulated: Any) -> None:
    layer, linear = layer_on(simulated), nn.utils.skip_init(nn.Linear, 8, 6)
    x = torch.ones(5, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == linear(x).dtype == torch.bfloat16
        y.sum().backward()
    assert layer.controls.grad is not None
    assert layer.controls.grad.dtype == torch.float32, "the device has full precision"


def test_a_device_without_negative_inputs_works(simulated: Any, generator: torch.Generator) -> None:
    layer = layer_on(simulated, input_range=(0.0, 1.0), gain=False, bias=False, method="exact")
    x = torch.randn(5, 8, generator=generator, requires_grad=True)
    A = torch.cos(layer.controls.detach()).reshape(6, 8) / sqrt(8)
    y = layer(x)
    torch.testing.assert_close(y, x @ A.T)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.ones(5, 6) @ A)


# -- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["exact", "auto"])
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 1.0), (0.5, 2.0)])
def test_all_gradients_equal_those_of_autograd(
    method: str, bounds: Any, simulated: Any, generator: torch.Generator
) -> None:
    # On A = W, `auto` is exact as well. The reference is plain autograd without a device.
    layer = layer_on(simulated, "matvec", input_range=bounds, method=method, dtype=torch.float64)
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    weights = torch.randn(3, 5, 6, dtype=torch.float64, generator=generator)
    (layer(x).tanh() * weights).sum().backward()

    assert layer.gain is not None
    assert layer.bias is not None
    w, g, b = (p.detach().clone().requires_grad_() for p in (layer.controls, layer.gain, layer.bias))
    leaf = x.detach().clone().requires_grad_()
    ((g * leaf @ w.reshape(6, 8).T + b).tanh() * weights).sum().backward()
    for ours, reference in zip((x, *layer.parameters()), (leaf, w, g, b), strict=True):
        torch.testing.assert_close(ours.grad, reference.grad)


def test_accumulated_gradients_are_the_sum_of_the_parts(simulated: Any, generator: torch.Generator) -> None:
    layer = layer_on(simulated, "matvec", dtype=torch.float64)
    x = torch.randn(6, 8, dtype=torch.float64, generator=generator)
    layer(x).square().sum().backward()
    assert layer.controls.grad is not None
    whole = layer.controls.grad.clone()
    layer.zero_grad()
    for part in x.split(2):
        layer(part).square().sum().backward()
    torch.testing.assert_close(layer.controls.grad, whole)


@pytest.mark.parametrize("method", ["exact", "paper", "auto"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_input_gradients_use_the_present_controls(
    method: str, frozen: bool, training: bool, simulated: Any, generator: torch.Generator
) -> None:
    options: dict[str, Any] = {"samples": 1, "rank": 6, "probes": None} if method == "paper" else {}
    layer = layer_on(simulated, "matvec", method=method, gain=False, dtype=torch.float64, **options)
    x = torch.randn(5, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    layer(x).sum().backward()
    with torch.no_grad():
        layer.controls.neg_()
    layer.train(training).controls.requires_grad_(not frozen)
    x.grad = None
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(5, 6).double() @ layer.controls.detach().reshape(6, 8))


def test_an_overflow_of_the_gradient_spends_nothing(simulated: Any) -> None:
    layer = layer_on(simulated, "mzi", method="paper", samples=3)
    y = layer(torch.ones(9, 8))
    spent = layer.session.usage
    (y * torch.inf).sum().backward()
    assert layer.controls.grad is not None
    assert bool(layer.controls.grad.isnan().all()), "a GradScaler finds NaN and skips the step"
    assert layer.session.usage == spent


@pytest.mark.parametrize(("kind", "method"), [("mrr", "auto"), ("mzi", "paper")])
def test_a_backward_pass_inside_autocast_has_full_precision(kind: str, method: str, simulated: Any) -> None:
    options = {"samples": 3} if method == "paper" else {}
    layer = layer_on(simulated, kind, 8, 8, method=method, **options)
    x = torch.ones(20, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_vectors_too_small_to_be_scaled_are_sent_unscaled(simulated: Any) -> None:
    layer = layer_on(simulated, "slm")
    x = torch.full((3, 8), 1e-39, requires_grad=True)
    assert bool(torch.isfinite(layer(x)).all())


@pytest.mark.parametrize("linear", [True, False])
def test_encoding_scale_works_with_a_one_sided_input_range(linear: bool, matrix_device: Any) -> None:
    device = matrix_device(linear=linear, input_range=(0.0, 1.0), coupling="dense")
    layer = BlackBoxLinear(device, encoding="scale")
    layer(torch.rand(5, 4, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert layer.controls.grad is not None


def test_a_budget_too_small_for_the_startup_is_refused_before_anything_is_spent(simulated: Any) -> None:
    device = simulated("slm", 8, 6)
    device.budget = Budget(vectors=20)
    with pytest.raises(BudgetExceeded, match="startup: this would need 24 vectors of a budget of 20"):
        BlackBoxLinear(device)
    assert device.usage.programs == device.usage.vectors == 0


def test_a_layer_can_be_converted_to_another_precision(simulated: Any) -> None:
    for method in ("paper", "auto", "exact"):
        layer = layer_on(simulated, "slm", method=method).double()
        x = torch.ones(5, 8, dtype=torch.float64, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None
        assert x.grad.dtype == torch.float64


def test_a_layer_used_twice_gets_the_sum_of_both_gradients(simulated: Any, generator: torch.Generator) -> None:
    layer = layer_on(simulated, "matvec", 8, 8, dtype=torch.float64, gain=False, bias=False)
    x = torch.randn(5, 8, dtype=torch.float64, generator=generator)
    layer(layer(x)).sum().backward()
    w = layer.controls.detach().clone().requires_grad_()
    (x @ w.reshape(8, 8).T @ w.reshape(8, 8).T).sum().backward()
    torch.testing.assert_close(layer.controls.grad, w.grad)


@pytest.mark.parametrize(
    ("kind", "method", "impairments"),
    [("mrr", "auto", "lab"), ("slm", "auto", "lab"), ("matvec", "auto", "harsh"), ("matvec", "paper", "ideal"),
     ("mzi", "auto", "lab"), ("mzi", "paper", "lab")],
)  # fmt: skip
def test_a_layer_learns_in_an_ordinary_training_loop(
    kind: str, method: str, impairments: str, simulated: Any, generator: torch.Generator
) -> None:
    layer = layer_on(simulated, kind, impairments=impairments, method=method)
    target = torch.randn(6, 8, generator=generator) / sqrt(8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    losses = []
    for _ in range(80):
        x = torch.randn(64, 8, generator=generator)
        loss = (layer(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_any_optimizer_and_clipping_work_as_on_a_linear(simulated: Any) -> None:
    layer = layer_on(simulated, "matvec")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.ones(5, 8)).square().sum().backward()
        norm = nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()
    assert torch.isfinite(norm)


def test_controls_out_of_range_are_clamped_to_the_range(simulated: Any) -> None:
    layer = layer_on(simulated, "matvec")
    with torch.no_grad():
        layer.controls[0], layer.controls[1] = 5.0, -5.0
    layer(torch.ones(5, 8))
    assert layer.controls[:2].tolist() == [1.0, -1.0]


# -- usage -------------------------------------------------------------------------------------


def take_four_steps(layer: BlackBoxLinear, generator: torch.Generator) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        layer(torch.randn(20, 8, generator=generator, requires_grad=True)).sum().backward()
        optimizer.step()


def test_auto_measures_in_the_first_step_and_reuses_it_for_three_more(
    simulated: Any, generator: torch.Generator
) -> None:
    layer = layer_on(simulated, "mrr")
    take_four_steps(layer, generator)
    assert spending(layer) == {"startup": (1, 24), "forward": (3, 80), "controls": (1, 2 * 8)}


def test_elementwise_takes_one_program_a_step_besides_the_forward_pass(
    simulated: Any, generator: torch.Generator
) -> None:
    layer = layer_on(simulated, "mrr", every=1)
    assert spending(layer) == {"startup": (1, 16 + 8)}
    take_four_steps(layer, generator)
    assert spending(layer) == {
        "startup": (1, 24),
        "forward": (3, 80),  # the first step needs no program: the device still holds the controls of the startup
        "controls": (4, 4 * 2 * 8),
    }


def test_paper_takes_its_programs_for_controls_and_none_for_inputs(simulated: Any, generator: torch.Generator) -> None:
    layer = layer_on(simulated, "mrr", method="paper", samples=5, rank=2, probes=3)
    take_four_steps(layer, generator)
    assert spending(layer) == {
        "startup": (1, 24),
        "forward": (3, 80),
        "inputs": (0, 4 * 5 + 3 * 5),
        "controls": (4 * 5, 4 * 6 * 6),
    }


def test_frozen_controls_spend_nothing_on_gradients(simulated: Any, generator: torch.Generator) -> None:
    layer = layer_on(simulated, "mrr")
    layer.controls.requires_grad_(False)
    x = torch.randn(5, 8, generator=generator, requires_grad=True)
    layer(x).sum().backward()
    assert "controls" not in spending(layer)
    assert x.grad is not None
    assert layer.gain is not None
    device = layer.session.device
    assert isinstance(device, SimulatedDevice)
    assert isinstance(device.physics, LinearPhysics)
    A = device.physics.matrix(layer.controls, 8, 6)
    torch.testing.assert_close(x.grad, (torch.ones(5, 6) * layer.gain.detach()) @ A, atol=1e-5, rtol=1e-4)


def test_a_first_layer_spends_nothing_on_input_gradients(simulated: Any, generator: torch.Generator) -> None:
    layer = layer_on(simulated, "mrr", method="paper", samples=2)
    layer(torch.randn(5, 8, generator=generator)).sum().backward()
    assert "inputs" not in spending(layer)


@pytest.mark.parametrize("mode", ["eval", "no_grad", "inference"])
def test_an_evaluation_does_not_change_the_surrogate_and_has_its_own_purpose(
    mode: str, simulated: Any, generator: torch.Generator
) -> None:
    layer = layer_on(simulated, "mzi")
    before = layer.surrogate.state_dict()
    x = torch.randn(5, 8, generator=generator)
    if mode == "eval":
        layer.eval()(x)
    else:
        with torch.no_grad() if mode == "no_grad" else torch.inference_mode():
            layer(x)
    assert spending(layer)["evaluation"] == (0, 5)
    assert "forward" not in spending(layer)
    assert torch.equal(layer.surrogate.state_dict()["matrix"], before["matrix"])


def test_an_operation_beyond_the_budget_is_refused_before_it_is_sent(simulated: Any) -> None:
    layer = layer_on(simulated, "mrr")
    layer.session.budget = Budget(programs=layer.session.usage.programs + 1)
    layer(torch.ones(5, 8)).sum().backward()
    with torch.no_grad():
        layer.controls.add_(0.01)
    with pytest.raises(BudgetExceeded, match="raise the budget"):
        layer(torch.ones(5, 8))
    assert layer.session.usage.programs == layer.session.budget.programs


# -- state -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "paper", "exact"])
def test_a_state_dict_loads_strictly_into_a_new_layer(method: str, simulated: Any, generator: torch.Generator) -> None:
    options: dict[str, Any] = {"method": method, "dtype": torch.float64}
    layer = layer_on(simulated, "slm", **options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(9, 8, dtype=torch.float64, generator=generator, requires_grad=True)).sum().backward()
        optimizer.step()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = layer_on(simulated, "slm", **options, seed=7)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = torch.randn(9, 8, dtype=torch.float64, generator=generator)
    gradients = []
    for each in (layer, fresh):
        each.zero_grad()
        leaf = x.clone().requires_grad_()
        each(leaf).sum().backward()
        gradients += [leaf.grad, each.controls.grad]
    torch.testing.assert_close(gradients[:2], gradients[2:])


def test_the_surrogate_starts_anew_on_another_chip(simulated: Any, generator: torch.Generator) -> None:
    # The surrogate `online` would otherwise keep the matrix of the other chip.
    options: dict[str, Any] = {"surrogate": "online", "impairments": Impairments(phase_bias_std=0.5)}
    here, there = (layer_on(simulated, "slm", chip=chip, **options) for chip in (0, 1))
    there.load_state_dict(here.state_dict(), strict=True)
    assert torch.equal(there.controls, here.controls)
    spent = spending(there).get("inputs", (0, 0))
    x = torch.randn(1, 8, generator=generator, requires_grad=True)
    there(x).sum().backward()
    assert spending(there)["inputs"][1] - spent[1] == 8
    device = there.session.device
    assert isinstance(device, SimulatedDevice)
    A = device.transfer(there.controls.detach(), torch.eye(8)).T
    assert there.gain is not None
    torch.testing.assert_close(x.grad, there.gain.detach() * torch.ones(1, 6) @ A, atol=1e-4, rtol=1e-3)


def test_a_copy_shares_the_device(simulated: Any) -> None:
    layer = layer_on(simulated)
    other = copy.deepcopy(layer)
    assert other.session is layer.session, "a copy of the model uses the same chip"
    assert other.controls is not layer.controls
    assert torch.equal(other(torch.ones(2, 8)), layer(torch.ones(2, 8)))


def test_same_seed_same_run(simulated: Any) -> None:
    runs = []
    for _ in range(2):
        layer = layer_on(simulated, "mrr", impairments="lab", seed=5)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            optimizer.zero_grad()
            layer(torch.randn(9, 8, generator=generator)).square().sum().backward()
            optimizer.step()
        runs.append(layer.controls.detach())
    assert torch.equal(*runs)


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "error", "complaint"),
    [
        (torch.ones(5, 7), ConfigurationError, r"must have shape \(\.\.\., 8\), but has \(5, 7\)"),
        (torch.ones(5, 8, dtype=torch.float64), ConfigurationError, "is torch.float32, but its input is torch.float64"),
        (torch.full((5, 8), float("nan")), OutOfRange, "NaN or infinity in row 0"),
        (torch.full((5, 8), float("inf")), OutOfRange, "NaN or infinity in row 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_spent(x: Any, error: Any, complaint: str, simulated: Any) -> None:
    layer = layer_on(simulated)
    spent = layer.session.usage
    for _ in range(2):
        with pytest.raises(error, match=complaint):
            layer(x)
        with torch.no_grad():
            layer.controls.add_(0.01)  # other controls, which the second call would program
    assert layer.session.usage == spent


def test_zero_outputs_do_not_count_as_saturated(matrix_device: Any) -> None:
    class Clipped(matrix_device):
        def _query(self, inputs: Any) -> Any:
            return super()._query(inputs).clip(0, 3)

    device = Clipped(input_range=(0.0, 1.0), output_range=(0.0, 3.0))
    layer = BlackBoxLinear(device, encoding="scale")
    with torch.no_grad():
        layer.controls.copy_(torch.tensor([1.0] * 4 + [0.5] * 4 + [0.0] * 4))
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.saturation == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"method": "magic"}, "no method named 'magic'; known are auto, paper, twin, exact"),
        ({"estimator": "magic"}, "no estimator named 'magic'; known are gaussian"),
        ({"surrogate": "magic"}, "no surrogate named 'magic'; known are psi"),
        ({"samples": 5}, "neither estimator 'elementwise' nor surrogate 'measured' takes an option 'samples'"),
        ({"method": "paper", "step": 1e-4, "impairments": "lab"}, "below one control level"),
        ({"estimator": "gaussian"}, "needs an estimator that measures"),
        ({"encoding": "morse"}, "no encoding named 'morse'"),
        ({"dtype": torch.float16}, "dtype must be float32 or float64"),
    ],
)
def test_a_method_that_does_not_suit_is_refused_before_anything_is_spent(
    options: dict[str, Any], complaint: str, simulated: Any
) -> None:
    device = simulated("slm", 8, 6, impairments=options.pop("impairments", "ideal"))
    with pytest.raises(ConfigurationError, match=complaint):
        BlackBoxLinear(device, **options)
    assert device.usage.programs == 0


@pytest.mark.parametrize("method", ["paper", "auto"])
def test_a_nonlinear_device_takes_auto_and_refuses_psi(method: str, matrix_device: Any) -> None:
    device = matrix_device(linear=False)
    if method == "paper":
        with pytest.raises(ConfigurationError, match="'psi' works on linear devices only"):
            BlackBoxLinear(device, method=method)
        assert device.log == []
    else:
        layer = BlackBoxLinear(device, method=method)
        assert type(layer.estimator).__name__ == "Output"


def test_a_layer_makes_a_session_for_a_raw_device(bench: Any) -> None:
    layer = BlackBoxLinear(bench)
    assert isinstance(layer.session, Session)
    layer(torch.ones(2, 4)).sum().backward()
    assert bench.log.count("program") == 2


def test_measured_stays_healthy_for_any_move_of_the_controls(simulated: Any, generator: torch.Generator) -> None:
    layer = layer_on(simulated, "slm", every=1)
    for _ in range(25):
        with torch.no_grad():
            layer.controls.uniform_(0, 6, generator=generator)
        layer(torch.randn(20, 8, generator=generator).requires_grad_()).square().sum().backward()
    assert layer.health == pytest.approx(1, abs=1e-3)


def test_health_and_step_are_restored_with_the_state(simulated: Any, generator: torch.Generator) -> None:
    first, second = layer_on(simulated, "mrr"), layer_on(simulated, "mrr")
    take_four_steps(first, generator)
    second.load_state_dict(first.state_dict())
    assert second.health == first.health is not None
    assert second.estimator.step_choice == first.estimator.step_choice is not None


def test_an_empty_batch_changes_nothing(simulated: Any) -> None:
    layer = layer_on(simulated, "mrr")
    layer(torch.empty(0, 8, requires_grad=True)).sum().backward()
    assert layer.health is None


def test_a_digital_part_of_another_shape_is_refused_before_anything_is_spent(simulated: Any) -> None:
    session = simulated("slm", 8, 6)
    with pytest.raises(ConfigurationError, match=r"must have shape \(6, 8\), but has \(8, 6\)"):
        BlackBoxLinear(session, digital=torch.ones(8, 6))
    assert session.usage.programs == 0
