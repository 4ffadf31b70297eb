"""Test the compensation of drift of a chip that is used, not trained."""

import threading
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import astralora.devices as d
from astralora.devices.testing import check_device
from astralora.devices.wrappers.references import References, Rows, reference_controls
from astralora.simulators import KINDS, Impairments, device_factory

KINDS_OF_COMPENSATION: tuple[d.Compensation, ...] = ("global", "output", "columns")


def fading(n: int = 8, m: int = 12, *, input_range: Any = (-1.0, 1.0), max_batch: int | None = None, **law: Any) -> Any:
    """Return a crossbar whose entries decay by a power law of time."""
    values = {"drift_nu": 0.05, "drift_t0_seconds": 1.0, "output_noise_fraction": 1e-5, "output_bound": 50.0, **law}
    impairments = Impairments(**values)
    return device_factory(KINDS["matvec"])(n, m, impairments=impairments, input_range=input_range, max_batch=max_batch)


def used_for_a_day(kind: Any, generator: torch.Generator, **law: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Return the answers right after the program, the answers a day later, and the session."""
    chip = fading(**law)
    device = chip if kind is None else d.CompensatedDevice(chip, kind)
    session = d.Session(device)
    session.open()
    weights = torch.rand(session.spec.num_controls, generator=generator) - 0.5
    low, high = session.spec.input_range or (-1.0, 1.0)
    inputs = torch.rand(20, 8, generator=generator) * (high - low) + low
    session.program(weights)
    before = session.query(inputs)
    chip.wait(86400.0)
    return before, session.query(inputs), session


def relative_change(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((after - before).norm() / before.norm())


class Aging(d.HardwareDevice):
    """Simulate a crossbar whose gain and offset the test sets, and which has no clock."""

    def __init__(self, n: int = 4, m: int = 6, offset: float = 0.0, noise: float = 0.0, **spec: Any) -> None:
        options = {"input_range": (-1.0, 1.0), "control_range": (-1.0, 1.0), "linear": True, "coupling": "elementwise"}
        options |= {"name": "ageing", "num_controls": n * m, "idempotent_program": True, **spec}
        super().__init__(d.DeviceSpec(in_features=n, out_features=m, **options))
        self.gain: Any = 1.0
        self.offset = offset
        self.random = np.random.default_rng(0)
        self.noise = noise
        self.log: list[str] = []
        self.fails = 0

    def _open(self) -> None:
        self.log.append("open")

    def _close(self) -> None:
        self.log.append("close")

    def _program(self, controls: Any) -> None:
        self.log.append("program")
        self.weights = np.array(controls).reshape(self.spec.out_features, self.spec.in_features)
        self.gain = 1.0

    def _query(self, inputs: Any) -> Any:
        if self.fails:
            self.fails -= 1
            raise d.DeviceTimeout("no answer")
        self.log.append(f"query {len(inputs)}")
        assert self.spec.max_batch is None or len(inputs) <= self.spec.max_batch
        low, high = self.spec.input_range or (-1.0, 1.0)
        assert inputs.min() >= low
        assert inputs.max() <= high
        outputs = self.gain * (inputs @ self.weights.T) + self.offset
        outputs = outputs + self.noise * self.random.standard_normal(outputs.shape)
        return outputs if self.spec.output_range is None else outputs.clip(*self.spec.output_range)


class WallTime:
    """Replace the wall clock by a time that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: float = 0.0) -> None:
        self.now = start
        monkeypatch.setattr("astralora.devices.clock.time.monotonic", lambda: self.now)


@pytest.fixture
def wall_time(monkeypatch: pytest.MonkeyPatch) -> WallTime:
    return WallTime(monkeypatch)


def weights_of(device: Any, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(device.spec.num_controls, generator=generator) - 0.5


# -- compensation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
def test_common_drift_is_compensated(kind: Any, generator: torch.Generator) -> None:
    before, after, _ = used_for_a_day(None, generator)
    assert relative_change(before, after) == pytest.approx(1 - 86400**-0.05, rel=0.01)
    before, after, _ = used_for_a_day(kind, generator)
    # Noise of 1e-5 x 50, on answers of about 0.5, doubles when they are scaled back: a third of a percent.
    assert relative_change(before, after) < 0.02


def test_each_output_has_its_own_factor(generator: torch.Generator) -> None:
    def uneven(kind: Any) -> float:
        chip = fading(4, 3, drift_nu=0.0, drift_nu_std=1e-9)
        # The first output does not drift, and the last one drifts most.
        state = chip.state_dict()
        state["decay"]["exponents"] = torch.tensor([0.0, 0.03, 0.06], dtype=torch.float64).repeat_interleave(4)
        chip.load_state_dict(state)
        session = d.Session(d.CompensatedDevice(chip, kind))
        with session:
            session.program(torch.rand(12, generator=generator) + 0.1 - 0.2)
            inputs = torch.rand(20, 4, generator=generator) * 2 - 1
            before = session.query(inputs)
            chip.wait(1e4)
            return relative_change(before, session.query(inputs))

    assert uneven("global") > 0.05
    assert uneven("output") < 0.02


def test_noise_does_not_spread_the_factors_of_equal_outputs(generator: torch.Generator) -> None:
    # 16 references with a power of 1/4 x 8/12 x 8 inputs, about 1.3 each, and noise of 0.3: 7 % error of each gain.
    chip = Aging(8, 40, noise=0.3)
    device = d.CompensatedDevice(chip, "output", every_seconds=1e-9)
    device.open()
    device.program(torch.rand(320, generator=generator) * 2 - 1)
    chip.gain = 0.5
    device.query(torch.zeros(1, 8))
    factor = device.factor
    assert float(factor.mean()) == pytest.approx(2.0, rel=0.05)
    # Without the common mean, the factors would scatter by 2 x 0.3 sqrt(1 + 1/16) / (0.5 sqrt(16 x 0.67)), about 0.38.
    assert float(factor.std()) < 0.15


def test_noise_in_the_first_answers_does_not_bias_the_gain(generator: torch.Generator) -> None:
    # The noise is as strong as the answers, and adds a quarter to the power of a mean of four answers.
    chip = Aging(4, 400, noise=0.29)
    device = d.CompensatedDevice(chip, "global", every_seconds=1e-9)
    device.open()
    device.program(torch.rand(1600, generator=generator) - 0.5)  # power 4 x 1/12 x 1/4
    chip.gain = 0.5
    device.query(torch.zeros(1, 4))
    # 16 x 400 answers measure a gain of 0.5 to sqrt(1.06 / 6400), 2.6 % of it; uncorrected, the factor would be 2.5.
    assert float(device.factor) == pytest.approx(2.0, rel=0.08)


def test_an_offset_of_the_detector_does_not_change_the_gain(generator: torch.Generator, wall_time: WallTime) -> None:
    for kind in KINDS_OF_COMPENSATION:
        chip = Aging(offset=3.0)
        device = d.CompensatedDevice(chip, kind)
        device.open()
        device.program(weights_of(device, generator))
        chip.gain = 0.6
        wall_time.now += 3600.0
        device.query(torch.rand(5, 4, generator=generator))
        assert device.factor.flatten().numpy() == pytest.approx(1 / 0.6, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.2, 1.0), (-0.2, 1.0), (-3.0, -1.0), (-1.0, 1.0), None])
def test_references_are_legal_and_work_on_any_input_range(kind: Any, bounds: Any, generator: torch.Generator) -> None:
    spec = fading().spec.model_copy(update={"input_range": bounds})
    watch = Rows(spec, 2, 0, 60.0) if kind == "columns" else References(spec, 16, 0)
    low, high = bounds or (-1.0, 1.0)
    assert bool(((watch.vectors >= low) & (watch.vectors <= high)).all())
    # References cover the half of the range next to zero, and every input reaches both ends of it.
    dark = min(max(low, 0.0), high)
    assert watch.vectors.amin(0).numpy() == pytest.approx((low + dark) / 2)
    assert watch.vectors.amax(0).numpy() == pytest.approx((high + dark) / 2)
    if bounds is not None:
        before, after, _ = used_for_a_day(kind, generator, input_range=bounds)
        assert relative_change(before, after) < 0.02


@pytest.mark.parametrize("kind", ["global", "output"])
def test_saturated_answers_are_not_used(kind: Any, generator: torch.Generator, wall_time: WallTime) -> None:
    # The first outputs saturate at nearly all references; used, they would show too little drift.
    chip = Aging(4, 6, output_range=(-0.8, 0.8))
    controls = torch.full((6, 4), 0.1) * torch.tensor([9.0, 9.0, 1.0, 1.0, 1.0, 1.0])[:, None]
    device = d.CompensatedDevice(chip, kind)
    device.open()
    device.program(controls.flatten())
    chip.gain = 0.8
    wall_time.now += 100.0
    device.query(torch.zeros(1, 4))
    assert device.factor.numpy() == pytest.approx(1.25, rel=1e-4)


def test_saturated_columns_are_not_used(generator: torch.Generator) -> None:
    spec = fading().spec.model_copy(update={"output_range": (-1.0, 1.0)})
    matrix = torch.rand(12, 8, generator=generator, dtype=torch.float64)
    # The last column saturates at the references, the other one only at inputs twice as strong: |y| = 0.2 x 8 x 0.5.
    matrix[-2], matrix[-1] = 0.2, 1.0
    rows = Rows(spec, 2, 0, 60.0)
    assert rows.begin((rows.vectors.double() @ matrix.T).clamp(-1.0, 1.0))
    inputs = torch.tensor([0.05, 0.1, 0.9, 1.0], dtype=torch.float64)[:, None].expand(4, 8)
    gain = rows.gain(inputs, (0.7 * inputs @ matrix.T).clamp(-1.0, 1.0), elapsed=1e9)
    assert gain == pytest.approx(0.7, rel=1e-6)


def test_outputs_stay_within_the_output_range(wall_time: WallTime) -> None:
    chip = Aging(4, 6, output_range=(-2.0, 2.0))
    device = d.CompensatedDevice(chip, "global")
    device.open()
    device.program(torch.full((24,), 0.5))
    chip.gain = 0.5
    wall_time.now += 100.0
    chip.offset = 1.5
    assert float(device.query(torch.ones(2, 4)).max()) == 2.0


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
def test_references_below_the_noise_give_a_warning_and_no_scaling(kind: Any, generator: torch.Generator) -> None:
    chip = Aging(noise=30.0)
    device = d.CompensatedDevice(chip, kind, every_seconds=1e-9)
    device.open()
    with pytest.warns(d.CompensationWarning, match="hardly exceed the noise"):
        device.program(weights_of(device, generator))
    chip.gain = 0.5
    device.query(torch.zeros(3, 4))
    assert float(device.factor) == 1.0


@pytest.mark.parametrize("gain", [0.0, -0.5, 0.04])
@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
def test_a_gain_near_zero_gives_a_warning_and_no_scaling(kind: Any, gain: float, generator: torch.Generator) -> None:
    chip = Aging()
    device = d.CompensatedDevice(chip, kind, every_seconds=1e-9)
    device.open()
    device.program(weights_of(device, generator))
    chip.gain = gain
    with pytest.warns(
        d.CompensationWarning, match="of the signal is left, too little to scale back; program the chip again"
    ):
        device.query(torch.rand(3, 4, generator=generator))
    assert float(device.factor) == 1.0


def test_a_dead_output_keeps_factors_finite(generator: torch.Generator) -> None:
    before, after, session = used_for_a_day("output", generator, dead_output_fraction=1 / 12)
    factor = session.device.factor
    assert bool(torch.isfinite(factor).all())
    assert float(factor.max()) < 3
    assert relative_change(before, after) < 0.02


def test_columns_average_over_queries(generator: torch.Generator) -> None:
    # Four answers of about 0.7 with noise of 0.1 measure the gain to 7 %, fifty times as many to 1 %.
    chip = fading(drift_nu=0.0, output_noise_fraction=0.1 / 50)
    device = d.CompensatedDevice(chip, "columns", every_seconds=1e3)
    device.open()
    device.program(weights_of(device, generator))
    chip.wait(1e6)  # the weight of the answers right after the program is zero by now
    factors = []
    for _ in range(50):
        device.query(torch.rand(1, 8, generator=generator) * 2 - 1)
        factors.append(float(device.factor))
    assert abs(factors[-1] - 1) < 0.04
    assert np.std(factors[25:]) < 0.02


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
def test_answers_have_the_dtype_of_the_inputs(kind: Any, generator: torch.Generator) -> None:
    device = d.CompensatedDevice(fading(), kind)
    device.open()
    device.program(weights_of(device, generator).double())
    d.clock_of(device).wait(100.0)
    spent = device.usage
    empty = device.query(torch.zeros(0, 8))
    assert (empty.shape, empty.dtype) == ((0, device.spec.out_features), torch.float32)
    assert device.usage == spent
    assert device.query(torch.zeros(2, 8, dtype=torch.float64)).dtype == torch.float64


# -- when references are measured, and their cost --------------------------------------------------------------


def test_references_are_counted_and_queried_at_the_chosen_interval(generator: torch.Generator) -> None:
    chip = fading()
    device = d.CompensatedDevice(chip, "global", every_seconds=10.0, vectors=5)
    with d.Session(device) as session:
        session.program(weights_of(device, generator))
        assert device.session.usage_by_purpose[d.Purpose.DRIFT].vectors == 4 * 5
        for _ in range(3):
            session.query(torch.ones(2, 8))
        assert device.session.usage_by_purpose[d.Purpose.DRIFT].vectors == 4 * 5
        chip.wait(11.0)
        session.query(torch.ones(2, 8))
        assert device.session.usage_by_purpose[d.Purpose.DRIFT].vectors == 5 * 5
        assert session.usage.vectors == 5 * 5 + 4 * 2


def test_columns_cost_outputs_and_no_vectors(generator: torch.Generator) -> None:
    _, _, session = used_for_a_day("columns", generator)
    assert (session.spec.out_features, session.spec.num_controls) == (12 - 4, 8 * 8)
    # References are measured right after the program only.
    assert session.usage.vectors == 2 * 8 + 20 + 20


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
def test_programming_the_same_controls_sends_nothing_and_keeps_the_references(
    kind: Any, generator: torch.Generator
) -> None:
    chip = fading()
    device = d.CompensatedDevice(chip, kind)  # without a session around it, which would skip the program
    device.open()
    weights = weights_of(device, generator)
    inputs = torch.rand(20, 8, generator=generator) * 2 - 1
    device.program(weights)
    before = device.query(inputs)
    chip.wait(86400.0)
    spent = device.usage
    device.program(weights.clone())
    assert device.usage == spent
    assert relative_change(before, device.query(inputs)) < 0.02


def test_a_program_is_repeated_after_its_references_failed(generator: torch.Generator) -> None:
    chip = Aging()
    device = d.CompensatedDevice(d.Session(chip, retry=d.Retry(attempts=1)), "output")
    device.open()
    weights = weights_of(device, generator)
    chip.fails = 1
    with pytest.raises(d.DeviceTimeout):
        device.program(weights)
    with pytest.raises(d.NotConnected, match="call program first"):
        device.query(torch.zeros(1, 4))
    before = chip.log.count("program")
    device.program(weights)
    # The second program follows the comparison of answers.
    assert chip.log.count("program") - before == 2


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
def test_a_retry_that_programs_the_chip_resets_the_factor(
    kind: Any, generator: torch.Generator, wall_time: WallTime
) -> None:
    chip = Aging()
    device = d.CompensatedDevice(d.Session(chip, retry=d.Retry(wait_seconds=0.0)), kind)
    device.open()
    device.program(weights_of(device, generator))
    inputs = torch.rand(5, 4, generator=generator)
    fresh = device.query(inputs)
    chip.gain = 0.5
    wall_time.now += 1e4
    assert relative_change(fresh, device.query(inputs)) < 1e-5
    chip.fails = 1  # the retry reopens and programs the chip: the gain is one
    assert relative_change(fresh, device.query(inputs)) < 1e-5
    assert chip.log.count("program") >= 2


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
def test_the_budget_is_checked_before_anything_is_sent(kind: Any, generator: torch.Generator) -> None:
    first = 16 if kind == "columns" else 4 * 16
    look = 0 if kind == "columns" else 16
    for inner in (False, True):  # budget of the session around the chip, or of the one around the wrapper
        chip = fading()

        def made(vectors: int, inner: bool = inner, chip: Any = chip) -> tuple[Any, Any]:
            budget = d.Budget(vectors=vectors)
            session = d.Session(chip, budget=budget if inner else None)
            device: Any = d.CompensatedDevice(session, kind)
            return (device, session) if inner else (d.Session(device, budget=budget), session)

        device, session = made(first - 1)
        device.open()
        with pytest.raises(d.BudgetExceeded):
            device.program(weights_of(device, generator))
        assert session.usage == d.Usage()
        device.close()
        device, session = made(first + look + 9)
        device.open()
        device.program(weights_of(device, generator))
        chip.wait(100.0)
        spent = session.usage
        with pytest.raises(d.BudgetExceeded):
            device.query(torch.zeros(10, 8))
        assert session.usage == spent
        device.query(torch.zeros(9, 8))
        assert session.usage.vectors == first + look + 9


@pytest.mark.parametrize("bad", [torch.zeros(2, 9), torch.full((2, 8), 7.0), torch.full((2, 8), torch.nan)])
def test_a_bad_query_sends_no_references(bad: torch.Tensor, generator: torch.Generator) -> None:
    device = d.CompensatedDevice(fading(), "global")
    device.open()
    device.program(weights_of(device, generator))
    d.clock_of(device).wait(100.0)
    spent = device.usage
    with pytest.raises(d.OutOfRange):
        device.query(bad)
    assert device.usage == spent


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
def test_the_price_equals_the_usage_if_every_query_measures_references(kind: Any, generator: torch.Generator) -> None:
    # At most 7 vectors a query: 64 references after a program are ten queries, and 16 later are three.
    device = d.CompensatedDevice(fading(max_batch=7), kind, every_seconds=1e-9)
    with d.Session(device) as session:
        session.program(weights_of(device, generator))
        d.clock_of(device).wait(1.0)
        session.query(torch.zeros(20, 8))
        priced = device.price(d.Usage(programs=1, queries=3, vectors=20))
        spent = session.usage
        assert (spent.programs, spent.queries, spent.vectors) == (priced.programs, priced.queries, priced.vectors)


def test_nested_devices_are_priced_by_the_operations_of_their_chips(generator: torch.Generator) -> None:
    def chips() -> list[d.Device]:
        return [d.make_device("matvec", in_features=4, out_features=4, seed=seed) for seed in range(4)]

    inside = d.TiledDevice([d.CompensatedDevice(chip, every_seconds=1e-9) for chip in chips()], 8, 8)
    outside = d.CompensatedDevice(d.TiledDevice(chips(), 8, 8), every_seconds=1e-9)
    for device in (inside, outside):
        with d.Session(device) as session:
            session.program(weights_of(device, generator))
            d.clock_of(session).wait(1.0)
            session.query(torch.zeros(3, 8))
            priced = device.price(d.Usage(programs=1, queries=1, vectors=3))
            assert (session.usage.programs, session.usage.vectors) == (priced.programs, priced.vectors)
            assert session.usage.vectors == 4 * (64 + 16 + 3)


def test_a_stand_in_counts_references_as_the_chip_does(generator: torch.Generator) -> None:
    chip = d.make_device("matvec", in_features=8, out_features=12, impairments="lab")
    device = d.CompensatedDevice(chip, "output", every_seconds=0.5)
    spent = []
    for session in (d.Session(device), d.Session(d.rehearse(d.Session(device)))):
        session.open()
        settings = torch.rand(3, session.spec.num_controls, generator=generator) - 0.5
        for setting in settings:
            session.apply(setting, torch.zeros(300_000, 8))  # one microsecond each
            session.query(torch.zeros(300_000, 8))
            session.query(torch.zeros(2, 8))
        spent.append((session.usage.programs, session.usage.queries, session.usage.vectors))
    assert spent[0] == spent[1]
    assert spent[0][2] == 3 * (64 + 600_002 + 16)


# -- with other devices -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
@pytest.mark.parametrize("options", [{}, {"impairments": "lab"}, {"input_range": (0.0, 1.0), "max_batch": 5}])
def test_keeps_the_contract(kind: Any, options: dict[str, Any]) -> None:
    def make() -> d.Device:
        return d.CompensatedDevice(device_factory(KINDS["matvec"])(6, 9, **options), kind)

    assert [(result.check, result.detail) for result in check_device(make) if not result.passed] == []


def test_the_clock_is_that_of_the_chip_behind_any_wrappers(generator: torch.Generator) -> None:
    chip = fading()
    tiles = [fading(4, 4) for _ in range(6)]
    for device in (
        d.CompensatedDevice(d.Session(d.Session(chip))),
        d.Session(d.CompensatedDevice(d.CompensatedDevice(chip, "columns"), "output")),
        d.Session(d.CompensatedDevice(d.TiledDevice(tiles, 8, 12))),
    ):
        device.open()
        before = d.clock_of(device).clock_seconds
        d.clock_of(device).wait(50.0)
        assert d.clock_of(device).clock_seconds == before + 50.0
        device.close()
    assert {tile.clock_seconds for tile in tiles} == {50.0}
    compensated = d.CompensatedDevice(chip)
    assert d.clock_of(compensated) is chip
    assert isinstance(d.clock_of(d.CompensatedDevice(Aging())), d.WallClock)


def test_forwards_the_state_of_the_chip_and_hides_its_law() -> None:
    chip = fading(temperature_std=1.0)
    session = d.Session(d.CompensatedDevice(chip))
    assert session.capability(d.Thermometer) is chip
    for own in (d.Composite, d.Snapshots, d.Rehearses):
        assert session.capability(own) is session.device
    for untrue in (d.Differentiable, d.Twinned, d.Reciprocal, d.Identifiable, d.ProgramsMany):
        assert session.capability(untrue) is None
    tiled = d.TiledDevice([fading(4, 4) for _ in range(4)], 8, 8)
    assert d.Session(d.CompensatedDevice(tiled)).capability(d.ReportsPeaks) is tiled


def test_compensations_stack(generator: torch.Generator) -> None:
    chip = fading()
    device = d.CompensatedDevice(d.CompensatedDevice(chip, "columns"), "output", every_seconds=1.0)
    device.open()
    device.program(weights_of(device, generator))
    inputs = torch.rand(20, 8, generator=generator) * 2 - 1
    before = device.query(inputs)
    chip.wait(86400.0)
    assert relative_change(before, device.query(inputs)) < 0.02


def test_threads_receive_answers_at_their_own_settings(generator: torch.Generator) -> None:
    device = d.CompensatedDevice(fading(drift_nu=0.0), "output", every_seconds=1e-9)
    session = d.Session(device)
    session.open()
    settings = [weights_of(device, generator) for _ in range(3)]
    inputs = torch.rand(4, 8, generator=generator)
    wrong: list[float] = []

    def use(setting: torch.Tensor) -> None:
        for _ in range(10):
            answer = session.apply(setting, inputs)
            wrong.append(float((answer - inputs @ setting.view(12, 8).T).abs().max()))

    threads = [threading.Thread(target=use, args=(setting,)) for setting in settings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Six standard deviations of the noise of 5e-4 cover all 1,440 values; its effect on the factor is smaller.
    assert len(wrong) == 30
    assert max(wrong) < 6e-3


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
def test_other_threads_wait_for_the_references_of_a_program(kind: Any, generator: torch.Generator) -> None:
    device = d.CompensatedDevice(fading(drift_nu=0.0), kind)  # without a session around it, which would lock
    device.open()
    settings = [weights_of(device, generator) for _ in range(2)]
    device.program(settings[0])
    started = threading.Event()
    problems: list[d.DeviceError] = []

    def ask() -> None:
        started.set()
        while not stopped.is_set():
            try:
                device.query(torch.zeros(1, 8))
            except d.DeviceError as error:
                problems.append(error)
                return

    stopped = threading.Event()
    thread = threading.Thread(target=ask)
    thread.start()
    started.wait()
    for place in range(100):
        device.program(settings[place % 2])
    stopped.set()
    thread.join()
    assert problems == []


def test_is_registered_and_adds_columns_to_the_chip(tmp_path: Path, generator: torch.Generator) -> None:
    path = tmp_path / "bench.toml"
    d.Bench(device="compensated", options={"device": "matvec", "kind": "columns", "columns": 3}).save(path)
    with d.open_device(str(path), in_features=8, out_features=5, impairments="lab", seed=3) as session:
        assert (session.spec.in_features, session.spec.out_features) == (8, 5)
        assert isinstance(session.device, d.CompensatedDevice)
        assert session.device.session.spec.out_features == 8
        session.program(weights_of(session, generator))
        assert session.query(torch.zeros(2, 8)).shape == (2, 5)


# -- saving --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS_OF_COMPENSATION)
def test_a_saved_compensation_continues(kind: Any, generator: torch.Generator) -> None:
    _, _, session = used_for_a_day(kind, generator)
    state = session.state_dict()
    other = d.Session(d.CompensatedDevice(fading(), kind))
    other.open()
    assert other.load_state_dict(state)
    inputs = torch.rand(3, 8, generator=generator)
    assert torch.equal(other.query(inputs), session.query(inputs))
    # The age of the references is restored too.
    for each in (session, other):
        d.clock_of(each).wait(40.0)
        spent = each.usage.vectors
        each.query(inputs)
        assert each.usage.vectors == spent + 3


class Remembering(Aging):
    """Keep the controls in a memory of the chip, which outlives the process."""

    capabilities = (d.Snapshots,)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": torch.from_numpy(self.weights), "gain": self.gain}

    def load_state_dict(self, state: Any) -> None:
        self.weights, self.gain, self._is_programmed = state["weights"].numpy(), state["gain"], True


@pytest.mark.parametrize("later", [5.0, 1e6])
def test_on_the_wall_clock_a_new_process_measures_references_at_once(
    later: float, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall_time = WallTime(monkeypatch, start=1000.0)
    chip = Remembering()
    device = d.CompensatedDevice(chip, "output")
    device.open()
    device.program(weights_of(device, generator))
    inputs = torch.rand(3, 4, generator=generator)
    before = device.query(inputs)
    state = device.state_dict()
    wall_time.now = later  # another process, whose clock has another origin
    other = d.CompensatedDevice(Remembering(), "output")
    other.open()
    assert other.load_state_dict(state)
    assert isinstance(other.session.device, Remembering)
    other.session.device.gain = 0.5
    assert relative_change(before, other.query(inputs)) < 1e-5


def test_a_chip_that_could_not_be_restored_must_be_programmed(generator: torch.Generator) -> None:
    device = d.CompensatedDevice(Aging(), "output")
    device.open()
    weights = weights_of(device, generator)
    device.program(weights)
    assert not device.load_state_dict(device.state_dict())
    with pytest.raises(d.NotConnected):
        device.query(torch.zeros(1, 4))
    device.program(weights)
    assert device.query(torch.zeros(1, 4)).shape == (1, 6)


# -- refused options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "chip", "options", "sentence"),
    [
        ("colour", "matvec", {}, "there is no compensation 'colour'; known are global, output, columns"),
        ("global", "diffractive", {}, "is not linear, so no factor can compensate its drift; use a linear chip"),
        ("columns", "mzi", {}, "kind='columns' needs one control for every matrix entry, .*; use 'output'"),
        ("columns", "matvec", {"columns": 0}, "columns must be at least 1 and fewer than the 8 outputs of the chip"),
        ("columns", "matvec", {"columns": 8}, "columns must be at least 1 and fewer than the 8 outputs of the chip"),
        ("global", "matvec", {"vectors": 1}, "vectors must be at least 2, to separate gain and offset, not 1"),
        ("output", "matvec", {"vectors": -3}, "vectors must be at least 2"),
        ("global", "matvec", {"every_seconds": 0.0}, "every_seconds must be positive and finite, not 0.0"),
        ("columns", "matvec", {"every_seconds": -1.0}, "every_seconds must be positive and finite"),
        ("output", "matvec", {"every_seconds": float("nan")}, "every_seconds must be positive and finite"),
        ("output", "matvec", {"every_seconds": float("inf")}, "every_seconds must be positive and finite"),
    ],
)
def test_refuses_chips_and_options_without_compensation(
    kind: Any, chip: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(d.DeviceError, match=sentence):
        d.CompensatedDevice(device_factory(KINDS[chip])(8, 8), kind, **options)


# -- the parts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 30])
def test_orthogonal_vectors_measure_rows_exactly(n: int, generator: torch.Generator) -> None:
    spec = d.DeviceSpec(
        name="chip", in_features=n, out_features=3, num_controls=3 * n, input_range=(0.2, 1.0), linear=True
    )
    rows = Rows(spec, 2, 0, 60.0)
    assert n + 2 <= len(rows.vectors) <= max(4, 2 * (n + 1))
    matrix = torch.randn(3, n, generator=generator, dtype=torch.float64)
    offset = torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
    assert rows.begin(rows.vectors.double() @ matrix.T + offset)
    inputs = torch.rand(4, n, generator=generator, dtype=torch.float64) * 0.8 + 0.2
    gain = rows.gain(inputs, 0.7 * inputs @ matrix.T + offset, elapsed=1e9)
    assert gain == pytest.approx(0.7, rel=1e-6)


def test_the_weight_of_earlier_answers_of_columns_decays(generator: torch.Generator) -> None:
    spec = fading().spec
    rows = Rows(spec, 2, 0, memory_seconds=10.0)
    matrix = torch.randn(12, 8, generator=generator, dtype=torch.float64)
    rows.begin(rows.vectors.double() @ matrix.T)
    begun = 0.25 * len(rows.vectors) * float(matrix[-2:].square().sum())
    inputs = torch.rand(4, 8, generator=generator, dtype=torch.float64)
    fresh = float((inputs @ matrix[-2:].T).square().sum())
    left = 0.5 * begun  # after 10 log 2 seconds, by exp(-t / 10)
    found = rows.gain(inputs, 0.5 * inputs @ matrix.T, elapsed=10.0 * log(2))
    assert found == pytest.approx((left + 0.5 * fresh) / (left + fresh), rel=1e-6)


def test_fixed_controls_are_the_same_for_the_same_seed_and_legal() -> None:
    spec = fading().spec
    controls = reference_controls(spec, 3, 5)
    assert torch.equal(controls, reference_controls(spec, 3, 5))
    assert controls.shape == (24,)
    assert float(controls.abs().max()) <= 1.0
