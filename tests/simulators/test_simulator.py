"""Test the signal path, the clock and the state of simulated devices.

Statistical bounds are five standard errors of the estimate: one false alarm in a million.
"""

from math import exp, sqrt
from typing import Any

import pytest
import torch

from astralora.devices import (
    ChecksRequests,
    Clock,
    Device,
    DeviceError,
    Differentiable,
    Identifiable,
    InProcess,
    NotConnected,
    OutOfRange,
    ProgramsMany,
    PullsBack,
    Reciprocal,
    Snapshots,
    Thermometer,
    initial_controls,
)
from astralora.simulators import KINDS, PRESETS, Impairments, MatVec, SimulatedDevice
from astralora.simulators.converters import quantize
from astralora.simulators.crosstalk import Crosstalk
from astralora.simulators.wander import Process, Wander

pytestmark = pytest.mark.processors


def start(session: Any) -> torch.Tensor:
    controls: torch.Tensor = initial_controls(session.spec, torch.Generator().manual_seed(0))
    session.program(controls)
    return controls


def vectors(count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.empty(count, width).uniform_(-1, 1, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_has_the_capabilities_of_a_simulator(kind: str, simulated: Any) -> None:
    device = simulated(kind, 4, 4).device
    assert isinstance(device, Device)
    expected = {
        ProgramsMany,
        ChecksRequests,
        Differentiable,
        PullsBack,
        Identifiable,
        InProcess,
        Clock,
        Thermometer,
        Snapshots,
    }
    assert isinstance(device, SimulatedDevice)
    assert set(device.capabilities) == (expected | {Reciprocal} if KINDS[kind].reciprocal else expected)
    for protocol in device.capabilities:
        assert isinstance(device, protocol)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind].reciprocal])
def test_kinds_that_are_not_reciprocal_refuse_vectors_in_reverse(kind: str, simulated: Any) -> None:
    session = simulated(kind, 4, 4)
    start(session)
    with pytest.raises(DeviceError, match="query_adjoint: has no reverse port, because its law is not reciprocal"):
        session.device.query_adjoint(torch.zeros(2, 4))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].reciprocal])
def test_query_adjoint_multiplies_by_the_transpose(kind: str, simulated: Any, generator: torch.Generator) -> None:
    session = simulated(kind, 6, 4)
    device = session.device
    start(device)
    matrix = device.query(torch.eye(6)).mT
    outputs = vectors(5, 4, generator)
    torch.testing.assert_close(device.query_adjoint(outputs), outputs @ matrix)


@pytest.mark.parametrize("kind", KINDS)
def test_ideal_device_answers_as_its_physics(kind: str, simulated: Any, generator: torch.Generator) -> None:
    session = simulated(kind, 6, 4)
    controls, inputs = start(session), vectors(5, 6, generator)
    expected = KINDS[kind]().transfer(controls, inputs, 4)
    torch.testing.assert_close(session.query(inputs), expected)
    torch.testing.assert_close(session.device.transfer(controls, inputs), expected)


# -- seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_the_same_chip_with_the_same_noise(
    kind: str, simulated: Any, generator: torch.Generator
) -> None:
    inputs = vectors(5, 6, generator)
    answers = []
    for _ in range(2):
        session = simulated(kind, 6, 4, impairments="harsh", seed=3)
        start(session)
        answers.append(torch.stack([session.query(inputs) for _ in range(3)]))
    assert torch.equal(*answers)


@pytest.mark.parametrize("kind", KINDS)
def test_different_seeds_give_different_chips(kind: str, simulated: Any, generator: torch.Generator) -> None:
    inputs = vectors(5, 6, generator)
    first, second = (simulated(kind, 6, 4, impairments="lab", seed=seed) for seed in (0, 1))
    controls = start(first)
    # The law itself differs, not just the noise on it.
    assert not torch.allclose(first.device.transfer(controls, inputs), second.device.transfer(controls, inputs))
    third = simulated(kind, 6, 4, impairments="harsh", seed=0)
    assert len({chip.spec.serial_number for chip in (first, second, third)}) == 3


def test_another_impairment_does_not_change_the_others(generator: torch.Generator) -> None:
    inputs, controls = vectors(5, 6, generator), torch.linspace(-1, 1, 24)
    biased, both = (
        SimulatedDevice(MatVec(), 6, 4, impairments=Impairments(phase_bias_std=0.1, gamma_std=gamma), seed=1)
        for gamma in (0.0, 1e-9)
    )
    torch.testing.assert_close(biased.transfer(controls, inputs), both.transfer(controls, inputs))


# -- the signal path -------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 5, 256])
def test_quantize_gives_the_stated_number_of_codes_and_is_idempotent(levels: int, generator: torch.Generator) -> None:
    values = torch.empty(20_000, dtype=torch.float64).uniform_(-3, 3, generator=generator)
    codes = quantize(values, (-2.0, 1.0), levels)
    assert len(codes.unique()) == levels
    assert (float(codes.min()), float(codes.max())) == (-2.0, 1.0)
    torch.testing.assert_close(quantize(codes, (-2.0, 1.0), levels), codes)
    inside = values.clamp(-2, 1)
    assert float((codes - inside).abs().max()) <= 1.5 / (levels - 1) + 1e-12


def test_controls_are_rounded_to_the_declared_levels(simulated: Any) -> None:
    session = simulated("matvec", 64, 1, impairments=Impairments(control_levels=5))
    session.program(torch.linspace(-1, 1, 64))
    weights = session.query(torch.eye(64))[:, 0]
    torch.testing.assert_close(weights.unique(), torch.linspace(-1, 1, 5))


def test_inputs_are_rounded_to_the_declared_levels(simulated: Any) -> None:
    session = simulated("matvec", 1, 1, impairments=Impairments(input_levels=5))
    session.program(torch.ones(1))
    answers = session.query(torch.linspace(-1, 1, 99).unsqueeze(1))
    torch.testing.assert_close(answers.unique(), torch.linspace(-1, 1, 5))


def test_output_noise_has_the_declared_strength(simulated: Any) -> None:
    session = simulated("matvec", 16, 16, impairments=Impairments(output_noise_fraction=0.02))
    start(session)
    answers = session.query(torch.zeros(1, 16).expand(4000, 16))
    assert session.spec.noise_std == pytest.approx(0.02 * session.spec.output_range[1])
    count = answers.numel()
    # The standard error of a standard deviation is itself over sqrt(2 count).
    assert float(answers.std()) == pytest.approx(session.spec.noise_std, rel=5 / sqrt(2 * count))
    assert abs(float(answers.mean())) < 5 * session.spec.noise_std / sqrt(count)


def test_declared_noise_includes_input_noise(simulated: Any) -> None:
    law = Impairments(input_noise_std=0.1, output_noise_fraction=0.01)
    session = simulated("matvec", 16, 16, impairments=law)
    session.program(torch.ones(256))  # the strongest controls
    spread = float(session.query(torch.zeros(4000, 16)).std())
    assert spread == pytest.approx(session.spec.noise_std, rel=0.05)


def test_detector_saturates_at_full_scale(simulated: Any) -> None:
    session = simulated("matvec", 16, 1, impairments=Impairments(output_levels=255))
    session.program(torch.ones(16))
    assert float(session.query(torch.ones(1, 16))) == pytest.approx(4.0), "full scale is the root of 16, the sum 16"


def test_insertion_loss_applies_to_query_transfer_and_query_each(simulated: Any) -> None:
    session = simulated("matvec", 1, 1, impairments=Impairments(insertion_loss_db=3.0103))
    session.program(torch.ones(1))
    assert float(session.query(torch.ones(1, 1))) == pytest.approx(1 / sqrt(2), rel=1e-4)
    assert float(session.device.transfer(torch.ones(1), torch.ones(1, 1))) == pytest.approx(1 / sqrt(2), rel=1e-4)
    assert float(session.query_each(torch.ones(2, 1), torch.ones(1, 1))[0]) == pytest.approx(1 / sqrt(2), rel=1e-4)


def test_control_noise_is_drawn_at_each_program(simulated: Any) -> None:
    session = simulated("matvec", 32, 32, impairments=Impairments(control_noise_std=0.05))
    errors = []
    for sign in (1, -1):
        session.program(torch.full((1024,), 0.5 * sign))
        first, second = session.query(torch.eye(32)), session.query(torch.eye(32))
        assert torch.equal(first, second)
        errors.append(first - 0.5 * sign)
    assert float(errors[0].std()) == pytest.approx(0.05, rel=5 / sqrt(2 * 1024))
    assert abs(float((errors[0] * errors[1]).mean())) < 5 * 0.05**2 / sqrt(1024)


@pytest.mark.parametrize("kind", ["matvec", "mzi"])
def test_crosstalk_reaches_the_four_neighbours(kind: str) -> None:
    share, physics = 0.01, KINDS[kind]()
    layout = physics.layout(6, 6)
    places = {int(c): (i, j) for i, row in enumerate(layout) for j, c in enumerate(row) if c >= 0}
    count = len(places)
    expected = torch.eye(count)
    for control, (i, j) in places.items():
        for other, (k, n) in places.items():
            if abs(i - k) + abs(j - n) == 1:
                expected[other, control] = share
    crosstalk = Crosstalk(layout, torch.device("cpu"))
    torch.testing.assert_close(crosstalk.add(torch.eye(count), torch.tensor(share)).T, expected)


def test_dead_and_stuck_controls_do_not_move() -> None:
    law = Impairments(dead_fraction=0.02, stuck_fraction=0.03)
    device = SimulatedDevice(MatVec(), 20, 20, impairments=law)
    # The transfer matrix of this kind is its controls.
    low, high = (device.transfer(torch.full((400,), value), torch.eye(20)).mT for value in (-0.5, 0.5))
    fixed = low == high
    assert int(fixed.sum()) == 8 + 12
    assert int((low[fixed] == -1).sum()) == 8, "dead controls are at the low end"


# -- the virtual clock -----------------------------------------------------------------------


def test_programs_and_vectors_move_the_clock(simulated: Any) -> None:
    law = Impairments(program_seconds=0.2, settle_seconds=0.3, vector_seconds=0.01)
    session = simulated("slm", 4, 4, impairments=law)
    start(session)
    session.query(torch.zeros(7, 4))
    assert session.device.clock_seconds == pytest.approx(0.5 + 0.07)
    session.query_each(torch.zeros(3, 16), torch.zeros(2, 4))
    assert session.device.clock_seconds == pytest.approx(0.57 + 3 * 0.52)
    assert session.usage.hardware_seconds(session.spec) == pytest.approx(session.device.clock_seconds)


def test_wander_is_an_ornstein_uhlenbeck_process() -> None:
    count, std, seconds = 20_000, 0.3, 2.0
    wander = Wander(count, [Process(std, seconds)], torch.Generator().manual_seed(0))
    assert wander.value is not None
    before = wander.value.clone()
    for step in range(1, 6):
        wander.advance(0.2 * step)
    after = wander.value
    # Steady state: the variance stays, and correlation falls by exp(-dt / seconds).
    assert float(after.std()) == pytest.approx(std, rel=5 / sqrt(2 * count))
    correlation = float((before * after).mean()) / std**2
    assert correlation == pytest.approx(exp(-1.0 / seconds), abs=5 * sqrt(2 / count))


def test_statistics_of_wander_do_not_depend_on_the_number_of_evaluations() -> None:
    count, std, seconds = 20_000, 0.3, 2.0
    changes = []
    for steps in (1, 50):
        wander = Wander(count, [Process(std, seconds)], torch.Generator().manual_seed(steps))
        assert wander.value is not None
        before = wander.value.clone()
        for step in range(1, steps + 1):
            wander.advance(step / steps)
        changes.append(float((wander.value - before).var()))
    expected = 2 * std**2 * (1 - exp(-1.0 / seconds))
    assert changes == [pytest.approx(expected, rel=5 * sqrt(2 / count))] * 2


def test_device_wanders_while_it_is_used(simulated: Any) -> None:
    law = Impairments(wander_std=0.05, wander_seconds=1.0, program_seconds=0.1)
    session = simulated("matvec", 32, 32, impairments=law)
    first = torch.zeros(1024)
    session.program(first)
    before = session.query(torch.eye(32))
    for step in range(20):
        session.program(first + 1e-3 * (step % 2 + 1))
    session.program(first)
    change = session.query(torch.eye(32)) - before
    expected = 0.05 * sqrt(2 * (1 - exp(-2.1)))
    assert float(change.std()) == pytest.approx(expected, rel=5 / sqrt(2 * 1024))


# -- many settings ---------------------------------------------------------------------------

WITHOUT_NOISE = Impairments(control_levels=64, gamma_std=0.01, phase_bias_std=0.1, crosstalk=0.01, input_levels=63)


@pytest.mark.parametrize("kind", KINDS)
def test_query_each_equals_program_and_query(kind: str, simulated: Any, generator: torch.Generator) -> None:
    one, many = (simulated(kind, 6, 4, impairments=WITHOUT_NOISE, seed=2) for _ in range(2))
    controls, inputs = start(one), vectors(5, 6, generator)
    settings = controls * torch.linspace(0.5, 1, 7).unsqueeze(1)
    expected = torch.stack([one.apply(setting, inputs) for setting in settings])
    torch.testing.assert_close(many.query_each(settings, inputs), expected)
    # `one` has been programmed once before.
    assert one.device.clock_seconds == pytest.approx(many.device.clock_seconds + one.spec.program_seconds)
    torch.testing.assert_close(many.query(inputs), expected[-1])


def test_query_each_in_small_parts_gives_the_same_answers(
    simulated: Any, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, inputs = torch.rand(7, 24, generator=generator), vectors(5, 6, generator)
    whole = simulated("slm", 6, 4, impairments=WITHOUT_NOISE).query_each(settings, inputs)
    monkeypatch.setattr("astralora.simulators.simulator._CHUNK", 50)
    torch.testing.assert_close(simulated("slm", 6, 4, impairments=WITHOUT_NOISE).query_each(settings, inputs), whole)


def test_each_setting_of_query_each_has_its_own_noise(simulated: Any) -> None:
    session = simulated("matvec", 16, 16, impairments=Impairments(output_noise_fraction=0.02))
    answers = session.query_each(torch.zeros(2, 256), torch.zeros(500, 16))
    correlation = float((answers[0] * answers[1]).mean()) / session.spec.noise_std**2
    assert abs(correlation) < 5 / sqrt(answers[0].numel())


@pytest.mark.parametrize("law", [WITHOUT_NOISE, Impairments(write_hysteresis=0.1)])
def test_query_each_of_zero_settings_is_empty(law: Impairments, generator: torch.Generator) -> None:
    device = SimulatedDevice(MatVec(), 6, 4, impairments=law)
    device.open()
    assert device.query_each(torch.empty(0, 24), vectors(5, 6, generator)).shape == (0, 5, 4)


# -- requests and state ----------------------------------------------------------------------


def test_refuses_requests_that_hardware_refuses(generator: torch.Generator) -> None:
    device = SimulatedDevice(MatVec(), 6, 4)
    with pytest.raises(NotConnected):
        device.program(torch.zeros(24))
    device.open()
    with pytest.raises(NotConnected, match="no controls"):
        device.query(torch.zeros(1, 6))
    with pytest.raises(OutOfRange):
        device.program(torch.full((24,), 1.5))
    device.program(torch.zeros(24))
    device.close()
    device.open()
    with pytest.raises(NotConnected, match="no controls"):
        device.query(torch.zeros(1, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_answers_have_the_dtype_of_the_inputs(dtype: torch.dtype, simulated: Any) -> None:
    session = simulated("mzi", 6, 4, impairments="lab")
    session.program(torch.ones(session.spec.num_controls, dtype=dtype))
    assert session.query(torch.zeros(2, 6, dtype=dtype)).dtype == dtype


def test_restored_state_gives_the_same_future(simulated: Any, generator: torch.Generator) -> None:
    inputs = vectors(5, 6, generator)
    law = PRESETS["harsh"].model_copy(update={"wander_seconds": 0.05})
    first, second = (simulated("mrr", 6, 4, impairments=law, seed=1) for _ in range(2))
    controls = start(first)
    first.query(inputs)
    assert second.load_state_dict(first.state_dict()) is True
    futures = []
    for session in (first, second):
        answers = [session.query(inputs)]
        answers += [session.apply(controls * scale, inputs) for scale in (0.9, 0.8)]
        futures.append(torch.stack(answers))
    assert torch.equal(*futures)


def test_refuses_the_state_of_another_chip(simulated: Any) -> None:
    with pytest.raises(ValueError, match=r"belongs to chip sim-mrr-6x4-1-\w+, not to sim-mrr-6x4-2-\w+"):
        simulated("mrr", 6, 4, seed=2).load_state_dict(simulated("mrr", 6, 4, seed=1).state_dict())


def test_refuses_an_unknown_impairment() -> None:
    unknown: dict[str, Any] = {"colour": 1}
    with pytest.raises(ValueError, match="colour"):
        Impairments(**unknown)


def test_presets_have_their_documented_values() -> None:
    assert PRESETS["ideal"] == Impairments()
    lab, harsh = PRESETS["lab"], PRESETS["harsh"]
    assert (lab.control_levels, lab.output_noise_fraction, lab.crosstalk) == (256, 0.01, 0.005)
    assert (harsh.control_levels, harsh.output_noise_fraction) == (64, 0.05)
    assert harsh.dead_fraction == harsh.stuck_fraction == 0.01


def test_transfer_is_differentiable_by_controls_of_a_flawed_chip(simulated: Any, generator: torch.Generator) -> None:
    # Central differences of the device's own smooth law, which includes dead and stuck controls.
    session = simulated("mrr", 4, 3, impairments="harsh", seed=5)
    device = session.device
    controls = start(session).double().requires_grad_()
    inputs = vectors(5, 4, generator).double()
    assert torch.autograd.gradcheck(lambda w: device.transfer(w, inputs), (controls,))


# Uneven modulators and detectors, dead and stuck parts: everything that both gradients must include.
UNEVEN = Impairments(
    gamma_std=0.05,
    crosstalk=0.02,
    stuck_fraction=0.1,
    input_gain_std=0.1,
    input_offset_std=0.1,
    output_gain_std=0.1,
    output_offset_std=0.1,
    dead_output_fraction=0.3,
    wander_std=0.1,
)


@pytest.mark.parametrize("kind", KINDS)
def test_vjp_equals_autograd_through_transfer(kind: str, simulated: Any, generator: torch.Generator) -> None:
    device = simulated(kind, 6, 4, impairments=UNEVEN, seed=5).device
    assert isinstance(device, PullsBack)
    assert isinstance(device, SimulatedDevice)
    controls = start(simulated(kind, 6, 4)).double().requires_grad_()
    inputs = vectors(5, 6, generator).double().requires_grad_()
    grads = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    expected = torch.autograd.grad(device.transfer(controls, inputs), [controls, inputs], grads)
    torch.testing.assert_close(device.vjp(controls, inputs, grads), expected)
    assert device.vjp(controls, inputs, grads, by_inputs=False)[1] is None
    assert device.vjp(controls, inputs, grads, by_controls=False)[0] is None


def test_query_during_settling_does_not_change_the_final_controls(simulated: Any) -> None:
    law = Impairments(settle_tau_seconds=1e-3, vector_seconds=1e-6)
    session = simulated("matvec", 2, 2, impairments=law)
    session.program(torch.zeros(4))
    session.device.wait(1.0)
    session.program(torch.ones(4))
    during = session.query(torch.ones(1, 2))
    session.device.wait(1.0)
    assert float(during.max()) < 1.99
    torch.testing.assert_close(session.query(torch.ones(1, 2)), torch.full((1, 2), 2.0))
