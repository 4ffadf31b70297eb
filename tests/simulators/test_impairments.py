"""Test every impairment by itself against its law."""

from math import exp, pi, sqrt
from typing import Any

import numpy as np
import pytest
import torch

import astralora.devices as d
from astralora.probing.encoding import Scale
from astralora.simulators import KINDS, Impairments, SimulatedDevice, device_factory
from astralora.simulators.memory import PCM_MAX_MICROSIEMENS, pcm_drift, pcm_programming_std
from astralora.simulators.wander import Wander, flicker, wander_processes


def chip(kind: str, n: int, m: int, physics: Any = None, **law: Any) -> Any:
    device = device_factory(KINDS[kind])(n, m, impairments=Impairments(**law), **(physics or {}))
    device.open()
    return device


def matrix(device: Any) -> torch.Tensor:
    eye = torch.eye(device.spec.in_features, dtype=torch.float64)
    product: torch.Tensor = device.query(eye).mT
    return product


# -- the reference law of analog products -------------------------------------------------------


def reference(A: Any, x: Any) -> Any:
    """Compute alpha ADC(A DAC(x / alpha)), with steps of 1/126 and 1/510 of the ranges, inputs to 1, outputs to 12."""
    alpha = np.abs(x).max(axis=1, keepdims=True)
    sent = np.round((x / alpha + 1) / (2 / 126)) * (2 / 126) - 1
    answer = sent @ A.T
    return alpha * np.clip(np.round((answer + 12) / (24 / 510)) * (24 / 510) - 12, -12, 12)


AIHWKIT: dict[str, Any] = {"input_levels": 127, "output_bound": 12.0, "output_levels": 511}


def test_product_without_noise_follows_the_reference_law(generator: torch.Generator) -> None:
    device = chip("matvec", 20, 10, **AIHWKIT)
    A = torch.rand(10, 20, generator=generator, dtype=torch.float64) * 2 - 1
    x = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    device.program(A.flatten())
    encoding = Scale(device.spec)
    inputs, factors = encoding.encode(x)
    answers = encoding.decode(device.query(inputs), factors)
    np.testing.assert_allclose(answers, reference(A.numpy(), x.numpy()), atol=1e-6)


def test_product_with_noise_has_the_moments_of_the_reference_law(generator: torch.Generator) -> None:
    device = chip("matvec", 8, 6, **AIHWKIT, output_noise_fraction=0.06 / 12, input_noise_std=0.02)
    A = torch.rand(6, 8, generator=generator, dtype=torch.float64) * 2 - 1
    sent = torch.linspace(-1, 1, 127, dtype=torch.float64)[torch.randint(127, (1, 8), generator=generator)]
    device.program(A.flatten())
    count = 40_000
    answers = device.query(sent.repeat(count, 1))
    # The noise is larger than a step, so that rounding adds its own variance.
    variance = 0.06**2 + 0.02**2 * A.square().sum(dim=1) + (24 / 510) ** 2 / 12
    mean = (sent @ A.mT)[0]
    assert bool(((answers.mean(dim=0) - mean).abs() < 3 * (variance / count).sqrt()).all())
    assert bool(((answers.var(dim=0) / variance - 1).abs() < 3 * sqrt(2 / count)).all())


# -- controls -----------------------------------------------------------------------------------


def test_phase_is_proportional_to_the_square_of_the_voltage() -> None:
    device = chip("mzi", 2, 2, {"by": "voltage"})
    assert device.spec.control_unit == "V"
    assert device.spec.control_range == pytest.approx((0.0, 4.36 * sqrt(2)))
    plain = chip("mzi", 2, 2)
    device.program(torch.tensor([1.5, 4.0], dtype=torch.float64))
    plain.program(pi * (torch.tensor([1.5, 4.0], dtype=torch.float64) / 4.36) ** 2)
    torch.testing.assert_close(matrix(device), matrix(plain))


def test_electronics_limit_the_voltage() -> None:
    assert chip("mzi", 2, 2, {"by": "voltage", "v_pi": 10.0}).spec.control_range == (0.0, 10.8)


def test_converters_step_in_volts() -> None:
    device = chip("mrr", 1, 1, {"by": "voltage"}, control_levels=5)
    low, high = device.spec.control_range
    answers = []
    for share in (0.24, 0.25, 0.26, 0.5):
        device.program(torch.tensor([low + share * (high - low)], dtype=torch.float64))
        answers.append(float(matrix(device)))
    assert answers[0] == answers[1] == answers[2] != answers[3]


def test_hysteresis_holds_controls_back_in_both_directions() -> None:
    device = chip("matvec", 1, 1, write_hysteresis=0.2)
    positions = []
    for written in (0.0, 0.5, 0.45, -0.5):
        device.program(torch.tensor([written], dtype=torch.float64))
        positions.append(float(matrix(device)))
    # The control follows to within half the width, ignores a small reversal, and follows a large one.
    assert positions == pytest.approx([0.0, 0.4, 0.4, -0.4])


def test_controls_settle_exponentially() -> None:
    device = chip("matvec", 1, 1, settle_tau_seconds=1e-2, settle_seconds=1e-2, program_seconds=1e-3, vector_seconds=0)
    device.program(torch.tensor([-1.0], dtype=torch.float64))
    device.wait(1.0)
    device.program(torch.tensor([1.0], dtype=torch.float64))
    at_once = float(matrix(device))
    device.wait(1e-2)
    assert (1 - at_once) / 2 == pytest.approx(exp(-1), rel=1e-6)
    assert (1 - float(matrix(device))) / 2 == pytest.approx(exp(-2), rel=1e-6)


def test_every_program_draws_new_control_noise() -> None:
    device = chip("matvec", 40, 40, control_noise_std=0.01)
    errors = []
    for _ in range(2):
        device.program(torch.zeros(1600, dtype=torch.float64))
        errors.append(matrix(device).flatten())
    spread = torch.stack(errors)
    assert float(spread.std()) == pytest.approx(0.01, rel=5 / sqrt(2 * 3200))
    assert abs(float((spread[0] * spread[1]).mean())) < 5 * 1e-4 / sqrt(1600)


# -- time -----------------------------------------------------------------------------------------


def test_controls_decay_by_a_power_law_after_every_program() -> None:
    device = chip("matvec", 1, 1, drift_nu=0.05, drift_t0_seconds=2.0, vector_seconds=0)
    for _ in range(2):
        device.program(torch.ones(1, dtype=torch.float64))
        assert float(matrix(device)) == 1.0
        device.wait(200.0)
        assert float(matrix(device)) == pytest.approx(100**-0.05, rel=1e-9)


def test_programming_noise_of_phase_change_cells_follows_the_measured_law() -> None:
    g = torch.tensor([0.0, 0.5, 1.0])
    expected = torch.tensor([0.26348, 0.26348 + 0.9825 - 0.293275, 0.26348 + 1.9650 - 1.1731])
    torch.testing.assert_close(pcm_programming_std(g) * PCM_MAX_MICROSIEMENS, expected)
    device = chip("matvec", 100, 100, pcm=True)
    device.program(torch.full((10_000,), 0.5, dtype=torch.float64))
    errors = matrix(device) - 0.5
    assert float(errors.std()) == pytest.approx(float(expected[1]) / 25, rel=5 / sqrt(2e4))


def test_drift_exponents_of_phase_change_cells_follow_the_measured_law() -> None:
    mean, std = pcm_drift(torch.tensor([1e-9, 0.1, 1.0]))
    torch.testing.assert_close(mean, torch.tensor([0.1, 0.0244 + 0.0155 * 2.302585, 0.049]))
    torch.testing.assert_close(std, torch.tensor([0.045, -0.0059 + 0.0125 * 2.302585, 0.008]))


def test_phase_change_cells_lose_conductance_with_time() -> None:
    device = chip("matvec", 100, 100, pcm=True, vector_seconds=0)
    device.program(torch.full((10_000,), 0.9, dtype=torch.float64))
    before = matrix(device)
    device.wait(20.0 * 1e4)
    exponents = -(matrix(device) / before).log() / np.log(1e4)
    # Nearly no exponents are negative, so that clamping them at zero hardly moves the mean.
    assert float(exponents.mean()) == pytest.approx(0.049, abs=5 * 0.008 / 100 + 1e-3)


def test_flicker_has_a_spectrum_of_one_over_frequency() -> None:
    times = np.arange(4096) * 1.0
    wander = Wander(400, flicker(1.0, 1.0, 1e5), torch.Generator().manual_seed(0))
    path = wander.path(times.tolist())
    assert path is not None
    power = (torch.fft.rfft(path - path.mean(dim=0), dim=0).abs() ** 2).mean(dim=1)[1:]
    frequency = np.arange(1, len(power) + 1)
    inside = slice(3, 200)  # far from both ends of the range
    slope = np.polyfit(np.log(frequency[inside]), np.log(power.numpy()[inside]), 1)[0]
    assert slope == pytest.approx(-1.0, abs=0.1)


def test_common_wander_moves_controls_together() -> None:
    impairments = Impairments(wander_std=0.1, wander_common=0.8, wander_seconds=1.0)
    wander = Wander(900, wander_processes(impairments), torch.Generator().manual_seed(0))
    # Values five correlation times apart are independent.
    moves = wander.path([5.0 * step for step in range(1, 3001)])
    assert moves is not None
    covariance = torch.corrcoef(moves.mT[:20])
    off = covariance[~torch.eye(20, dtype=torch.bool)]
    assert float(off.mean()) == pytest.approx(0.8, abs=0.05)


def test_temperature_moves_all_controls_equally() -> None:
    device = chip("matvec", 3, 3, temperature_std=2.0, temperature_coefficient=0.01, temperature_seconds=1.0)
    device.program(torch.zeros(9, dtype=torch.float64))
    device.wait(10.0)
    moved = matrix(device)
    warmth = device.temperature_celsius - 25.0
    assert isinstance(device, d.Thermometer)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * warmth))
    assert warmth != 0


# -- signals --------------------------------------------------------------------------------------


def test_weight_noise_is_drawn_once_per_query() -> None:
    device = chip("matvec", 50, 50, weight_noise_std=0.02)
    device.program(torch.zeros(2500, dtype=torch.float64))
    first, second = matrix(device), matrix(device)
    assert float(first.std()) == pytest.approx(0.02, rel=5 / sqrt(5000))
    assert not torch.equal(first, second)
    eye = torch.eye(50, dtype=torch.float64)
    both = device.query(torch.cat([eye, eye]))
    assert torch.equal(both[:50], both[50:])  # constant within a query


def test_each_modulator_and_detector_has_its_own_gain_and_offset(generator: torch.Generator) -> None:
    flaws = {f"{side}_{what}_std": 0.05 for side in ("input", "output") for what in ("gain", "offset")}
    device = chip("matvec", 4, 3, **flaws, output_bound=2.0)
    A = torch.rand(3, 4, generator=generator, dtype=torch.float64) - 0.5
    x = torch.rand(5, 4, generator=generator, dtype=torch.float64) - 0.5
    device.program(A.flatten())
    found = device.true_constants
    expected = (x * found["input_gain"] + found["input_offset"]) @ A.mT * found["output_gain"] + found["output_offset"]
    torch.testing.assert_close(device.query(x), expected)


def test_modulator_clips_beyond_its_range() -> None:
    device = chip("matvec", 400, 1, input_gain_std=0.1)
    device.program(torch.ones(400, dtype=torch.float64))
    device.query(torch.ones(1, 400, dtype=torch.float64))
    assert device.clipped == pytest.approx(0.5, abs=5 * 0.5 / sqrt(400))
    device.query(torch.full((1, 400), 0.1, dtype=torch.float64))
    assert device.clipped == 0.0


def test_insertion_loss_is_in_decibels_of_power() -> None:
    device = chip("matvec", 2, 2, insertion_loss_db=6.0)
    device.program(torch.ones(4, dtype=torch.float64))
    assert float(matrix(device)[0, 0]) == pytest.approx(10 ** (-6 / 20))


def test_dead_outputs_carry_only_noise() -> None:
    device = chip("matvec", 8, 20, dead_output_fraction=0.1, output_noise_fraction=0.01)
    device.program(torch.ones(160, dtype=torch.float64))
    answers = device.query(torch.full((4000, 8), 0.2, dtype=torch.float64))
    dead = answers.mean(dim=0).abs() < 5 * 0.01 * sqrt(8) / sqrt(4000)
    assert int(dead.sum()) == 2
    assert torch.equal(device.dead_outputs, dead.nonzero()[:, 0])
    assert float(answers[:, dead].std()) == pytest.approx(0.01 * sqrt(8), rel=5 / sqrt(2 * 8000))


def test_flaws_of_forward_modulators_and_detectors_do_not_act_in_reverse(generator: torch.Generator) -> None:
    device = chip("matvec", 6, 4, dead_output_fraction=0.5, input_gain_std=0.1, output_gain_std=0.1)
    controls = torch.rand(24, generator=generator, dtype=torch.float64) - 0.5
    outputs = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    device.program(controls)
    torch.testing.assert_close(device.query_adjoint(outputs), outputs @ controls.view(4, 6))
    assert device.clipped == 0.0


@pytest.mark.parametrize(("field", "power"), [("output_noise_relative", 1.0), ("shot_noise_fraction", 0.5)])
def test_noise_grows_with_the_magnitude_of_the_output(field: str, power: float) -> None:
    device = chip("matvec", 4, 1, **{field: 0.05}, output_bound=100.0)
    device.program(torch.ones(4, dtype=torch.float64))
    stds = []
    for strength in (0.1, 0.9):
        answers = device.query(torch.full((20_000, 4), strength, dtype=torch.float64))
        stds.append(float(answers.std()))
    full = 1.0 if power == 1.0 else sqrt(100.0)
    expected = [0.05 * (4 * strength) ** power * full for strength in (0.1, 0.9)]
    assert stds == pytest.approx(expected, rel=5 / sqrt(4e4))


def test_saturated_counts_outputs_at_the_ends_of_the_range() -> None:
    device = chip("matvec", 4, 2, output_bound=1.0, output_levels=255)
    device.program(torch.tensor([1.0] * 4 + [0.1] * 4, dtype=torch.float64))
    device.query(torch.ones(1, 4, dtype=torch.float64))
    assert device.saturated == 0.5


def test_energy_is_usage_times_the_rates_of_the_spec() -> None:
    session = d.Session(chip("matvec", 2, 2, program_joules=2.0, vector_joules=0.25))
    with session:
        session.apply(torch.ones(4), torch.ones(6, 2))
        assert session.usage.hardware_joules(session.spec) == 2.0 + 6 * 0.25


@pytest.mark.parametrize(
    ("kind", "law", "sentence"),
    [
        ("mzi", {"pcm": True}, "pcm needs a kind whose controls are conductances, but those of mzi are phases"),
        (
            "diffractive",
            {"weight_noise_std": 0.1},
            "but diffractive has no transfer matrix",
        ),
        ("slm", {"splitter_error_std": 0.1}, "needs a mesh, but slm has no couplers"),
        ("slm", {"flicker_seconds": (2.0, 1.0)}, "the second value of flicker_seconds must be above the first"),
    ],
)
def test_impairments_that_a_kind_cannot_have_are_refused(kind: str, law: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        chip(kind, 4, 4, **law)


# -- constants --------------------------------------------------------------------------------------

FLAWED: dict[str, Any] = {
    "phase_bias_std": 0.1,
    "gamma_std": 0.03,
    "crosstalk": 0.01,
    "input_gain_std": 0.02,
    "output_offset_std": 0.02,
    "insertion_loss_db": 1.0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_law_with_the_true_constants_is_the_transfer_function(kind: str, generator: torch.Generator) -> None:
    device = chip(kind, 4, 4, **FLAWED)
    controls = d.initial_controls(device.spec, generator).double()
    inputs = 0.5 * torch.rand(3, 4, generator=generator, dtype=torch.float64)
    expected = device.law(device.true_constants, controls.unsqueeze(0), inputs)[0]
    torch.testing.assert_close(expected, device.transfer(controls, inputs))


@pytest.mark.parametrize(("kind", "physics"), [("slm", {}), ("mzi", {}), ("mzi", {"by": "voltage"}), ("mzi3", {})])
def test_written_for_makes_a_flawed_chip_act_as_a_nominal_one(
    kind: str, physics: dict[str, Any], generator: torch.Generator
) -> None:
    flaws = {name: FLAWED[name] for name in ("phase_bias_std", "gamma_std", "crosstalk")}
    flawed, perfect = chip(kind, 6, 6, physics, **flaws), chip(kind, 6, 6, physics)
    wanted = 1.0 + 3.0 * torch.rand(flawed.spec.num_controls, generator=generator, dtype=torch.float64)
    written = flawed.written_for(flawed.true_constants, wanted)
    x = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(flawed.transfer(written, x), perfect.transfer(wanted, x), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", ["slm", "mzi"])
def test_law_is_differentiable_by_its_constants(kind: str, generator: torch.Generator) -> None:
    device = chip(kind, 4, 4)
    controls = 1 + 3 * torch.rand(2, device.spec.num_controls, generator=generator, dtype=torch.float64)
    inputs = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    names = list(device.constants())
    values = [
        (
            constant.nominal + 0.02 * torch.randn(constant.shape, generator=generator, dtype=torch.float64)
        ).requires_grad_()
        for constant in device.constants().values()
    ]

    def law(*constants: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = device.law(dict(zip(names, constants, strict=True)), controls, inputs)
        return answers

    assert torch.autograd.gradcheck(law, values)


def test_another_flaw_does_not_change_the_draws_of_the_first() -> None:
    one = chip("mzi", 4, 4, gamma_std=0.01).true_constants
    two = chip("mzi", 4, 4, gamma_std=0.01, splitter_error_std=0.02, crosstalk=0.01).true_constants
    assert torch.equal(one["gamma"], two["gamma"])
    assert two.keys() == {"gamma", "splitter_error", "crosstalk"}


@pytest.mark.parametrize(
    ("constants", "sentence"),
    [
        ({"colour": torch.zeros(3)}, "mzi has no constant 'colour'; known are phase_bias"),
        ({"gamma": torch.zeros(3)}, r"must have shape \(12,\), but has \(3,\)"),
    ],
)
def test_constants_with_unknown_names_or_wrong_shapes_are_refused(constants: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SimulatedDevice(KINDS["mzi"](), 4, 4, constants=constants)


EVERYTHING: dict[str, Any] = {
    **FLAWED,
    "control_noise_std": 0.01,
    "write_hysteresis": 0.1,
    "settle_tau_seconds": 1e-3,
    "settle_seconds": 2e-3,
    "drift_nu": 0.05,
    "drift_t0_seconds": 1e-3,
    "wander_std": 0.02,
    "wander_common": 0.3,
    "flicker_std": 0.02,
    "temperature_std": 1.0,
    "temperature_coefficient": 0.01,
    "weight_noise_std": 0.01,
    "output_noise_fraction": 0.01,
    "output_noise_relative": 0.01,
    "shot_noise_fraction": 0.01,
}


def test_restored_state_gives_the_same_future_with_all_impairments(generator: torch.Generator) -> None:
    def future(device: Any) -> list[torch.Tensor]:
        answers = []
        for place in range(3):
            device.program(controls[place])
            device.wait(0.5)
            answers.append(device.query(inputs))
        return answers

    device = chip("matvec", 4, 4, **EVERYTHING)
    controls = torch.rand(4, 16, generator=generator) - 0.5
    inputs = 0.5 * torch.rand(3, 4, generator=generator)
    device.program(controls[3])
    device.query(inputs)
    state = device.state_dict()
    expected = future(device)
    other = chip("matvec", 4, 4, **EVERYTHING)
    other.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(future(other), expected, strict=True))


def test_query_each_equals_program_and_query_with_all_impairments(generator: torch.Generator) -> None:
    controls = torch.rand(5, 16, generator=generator) - 0.5
    inputs = 0.5 * torch.rand(3, 4, generator=generator)
    together = chip("matvec", 4, 4, **EVERYTHING).query_each(controls, inputs)
    device = chip("matvec", 4, 4, **EVERYTHING)
    for setting, answers in zip(controls, together, strict=True):
        device.program(setting)
        assert torch.equal(device.query(inputs), answers)


def test_noise_by_output_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"noise_by_output must have shape \(4,\), but has \(3,\)"):
        SimulatedDevice(KINDS["mzi"](), 4, 4, noise_by_output=torch.ones(3))
