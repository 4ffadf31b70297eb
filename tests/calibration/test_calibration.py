"""Test system identification, from the chip to the record, and training with the record."""

from pathlib import Path
from typing import Any

import pytest
import torch

import astralora as al
from astralora.calibration.pairs import choose_design
from astralora.simulators import KINDS, Impairments, SimulatedDevice, device_factory

NOISY: dict[str, Any] = {"input_levels": 255, "output_levels": 255, "output_noise_fraction": 0.02}


def chip(kind: str, size: int, seed: int = 0, **law: Any) -> Any:
    return device_factory(KINDS[kind])(size, size, impairments=Impairments(**{**NOISY, **law}), seed=seed)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def gradient(law: Any, controls: torch.Tensor, inputs: torch.Tensor, grad_outputs: torch.Tensor) -> torch.Tensor:
    leaf = controls.clone().requires_grad_()
    (found,) = torch.autograd.grad((law(leaf, inputs) * grad_outputs).sum(), leaf)
    return found


# Flaws with the standard deviations that the prior assumes, in every constant that can be fitted.
SPREADS = {
    "phase_bias_std": 0.2,
    "gamma_std": 0.05,
    "crosstalk": 0.005,
    "input_gain_std": 0.05,
    "input_offset_std": 0.02,
    "output_gain_std": 0.1,
    "output_offset_std": 0.02,
}


@pytest.mark.parametrize("kind", ["mrr", "slm"])
def test_constants_are_found_within_their_standard_errors(kind: str) -> None:
    physics = {"a": 0.78, "r": 0.92} if kind == "mrr" else {}
    device = device_factory(KINDS[kind])(8, 8, impairments=Impairments(**NOISY, **SPREADS), **physics)
    record = al.calibrate(device, al.Budget(programs=96, vectors=96 * 32 + 4))
    assert record.fit is not None
    assert record.fit.fits
    assert record.fit.errors == "full"
    assert record.fixed is None
    truth = {**device.true_constants, **{name: torch.tensor(value) for name, value in physics.items()}}
    off = {name: (found - truth[name]) / record.errors[name] for name, found in record.constants.items()}
    everything = torch.cat([values.flatten() for values in off.values()])
    # 0.27 % of normal errors exceed three, which is 0.44 of these 163; the chance of four or more is one in 1,000.
    assert int((everything.abs() > 3).sum()) <= 3
    for name in ("crosstalk", *physics):
        assert float(off[name].abs()) < 3, name
    # The mean square of 128 normal numbers is 1 +- 3 sqrt(2 / 128).
    local = torch.cat([off["phase_bias"], off["gamma"]])
    assert abs(float(local.square().mean()) - 1) < 3 * (2 / len(local)) ** 0.5


def test_a_mesh_is_identified_from_few_settings() -> None:
    device = chip("mzi", 16, phase_bias_std=0.2, gamma_std=0.05)
    session = al.Session(device, al.Budget(programs=48, vectors=800))
    record = al.calibrate(session, al.Budget(programs=48, vectors=800))
    assert record.fit is not None
    assert record.fit.fits
    assert session.usage.programs == record.spent["programs"] == 48
    assert session.usage.vectors <= 800
    generator = torch.Generator().manual_seed(5)
    twin = al.devices.make_model(al.devices.FittedModel(name="mzi"), device.spec)
    for _ in range(3):
        controls = al.devices.initial_controls(device.spec, generator)
        x = 2 * torch.rand(64, 16, generator=generator) - 1
        g = torch.randn(64, 16, generator=generator)
        true = gradient(device.transfer, controls, x, g)
        found = gradient(lambda w, x: twin.law(record.constants, w[None], x)[0], controls, x, g)
        nominal = gradient(lambda w, x: twin.law({}, w[None], x)[0], controls, x, g)
        assert cosine(found, true) > 0.98
        assert cosine(nominal, true) < 0.8


@pytest.mark.parametrize(("kind", "wrong"), [("mrr", "slm"), ("slm", "mrr"), ("slm", "matvec"), ("mzi", "mzi3")])
def test_a_wrong_law_is_reported_not_to_fit(kind: str, wrong: str) -> None:
    record = al.calibrate(chip(kind, 6, gamma_std=0.01), al.Budget(programs=24), model=wrong, steps=50)
    assert record.fit is not None
    assert not record.fit.fits
    assert record.constants == {}
    assert "does not fit" in record.fit.verdict


def stuck_controls(device: Any) -> list[int]:
    return [] if device.fixed_controls is None else (~device.fixed_controls.isnan()).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("kind", "size", "count"), [("slm", 16, 2), ("mrr", 16, 2), ("mzi", 8, 1)])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.campaign)])
def test_stuck_controls_are_found_and_fixed_in_the_twin(kind: str, size: int, count: int, seed: int) -> None:
    share = count / KINDS[kind]().num_controls(size, size)
    flaws = {"phase_bias_std": 0.1, "gamma_std": 0.02, "crosstalk": 0.005}
    device = chip(kind, size, seed, stuck_fraction=share, **flaws)
    record = al.calibrate(device, al.Budget(programs=48))
    assert record.fit is not None
    assert record.fit.fits
    assert record.fixed is not None
    named = (~record.fixed.isnan()).nonzero()[:, 0].tolist()
    held = device.fixed_controls
    # A ring stuck far from resonance cannot be distinguished from a large offset: neither changes its weight.
    assert [c for c in stuck_controls(device) if c not in named and not (kind == "mrr" and held[c] > 1.5)] == []
    assert [c for c in named if c not in stuck_controls(device)] == []
    moving = held.isnan()
    errors = (record.constants["phase_bias"] - device.true_constants["phase_bias"]) / record.errors["phase_bias"]
    if record.fit.errors == "full":
        assert int((errors[moving].abs() > 3).sum()) <= 3  # of 254; the chance of four or more is 0.5 %
    # Settings of stuck controls do not change the answers of the twin.
    twin = al.devices.CalibratedTwin(record)
    controls = al.devices.initial_controls(device.spec, torch.Generator().manual_seed(1))
    low, high = device.spec.control_range
    free = record.fixed.isnan()
    there = controls.where(free, low), controls.where(free, high)
    x = torch.eye(size)
    law = SimulatedDevice.from_calibration(record)
    for answer in (twin.transfer, lambda w, x: law.transfer(twin.written(w), x)):
        torch.testing.assert_close(answer(there[0], x), answer(there[1], x), atol=1e-5, rtol=0)
    # The twin agrees with the chip to well below the noise of 2 %.
    far = twin.transfer(controls, x) - twin.corrected(device.transfer(twin.written(controls), twin.sent(x)))
    assert float(far.square().mean().sqrt()) < 0.01 * device.spec.output_range[1]


@pytest.mark.parametrize("kind", ["slm", "mrr", "mzi"])
def test_no_moving_control_is_reported_as_stuck(kind: str) -> None:
    record = al.calibrate(chip(kind, 8, phase_bias_std=0.3, gamma_std=0.1, crosstalk=0.01), al.Budget(programs=48))
    assert record.fit is not None
    assert record.fit.fits
    assert record.fixed is None


@pytest.mark.parametrize(("programs", "vectors"), [(3, 3), (5, 100), (40, 321), (64, 4100), (7, None)])
def test_a_design_stays_within_its_budget(programs: int, vectors: int | None) -> None:
    spec = chip("slm", 8).spec
    budget = al.Budget(programs=programs, vectors=vectors)
    design = al.calibration.calibration_design(spec, budget, seed=0)
    assert len(design.settings) == programs
    assert vectors is None or design.vectors <= vectors
    assert bool(((design.settings >= 0) & (design.settings <= spec.control_range[1])).all())


def test_settings_cover_the_whole_range_of_every_control() -> None:
    spec = chip("slm", 4).spec
    settings = choose_design(spec, 10, 1000, seed=0).settings / spec.control_range[1]
    strata = (settings * 10).floor().clamp(0, 9).sort(dim=0).values
    assert torch.equal(strata, torch.arange(10.0).unsqueeze(1).expand(10, 16))


def test_a_budget_that_is_too_small_is_refused_before_anything_is_spent() -> None:
    session = al.Session(chip("slm", 4))
    with pytest.raises(al.ConfigurationError, match="needs at least 3 programs and a vector for each, not 2"):
        al.calibrate(session, al.Budget(programs=2))
    session = al.Session(chip("slm", 4), al.Budget(programs=5))
    with pytest.raises(al.BudgetExceeded):
        al.calibrate(session, al.Budget(programs=6))
    assert session.usage.programs == 0


def test_a_device_of_unknown_law_needs_a_model(bench: Any) -> None:
    complaint = r"no law is known for 'bench'; name the law as the model, such as .*matvec.*mzi.* or 'none'"
    with pytest.raises(al.ConfigurationError, match=complaint):
        al.calibrate(bench)


def test_an_interrupted_calibration_resumes(tmp_path: Path) -> None:
    path, budget = tmp_path / "chip.cal.json", al.Budget(programs=20, vectors=200)

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "measured" and event["done"] == 12:
            raise KeyboardInterrupt

    first = al.Session(chip("slm", 8))
    with pytest.raises(KeyboardInterrupt):
        al.calibrate(first, budget, path=path, steps=50, listener=interrupt)
    assert not path.exists()
    assert (tmp_path / "chip.cal.json.part").exists()
    second = al.Session(chip("slm", 8))
    record = al.calibrate(second, budget, path=path, steps=50)
    assert (first.usage.programs, second.usage.programs) == (12, 8 if second.usage.programs == 8 else 9)
    assert al.Calibration.load(path).digest == record.digest
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_a_file_of_another_measurement_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chip.cal.json"
    (tmp_path / "chip.cal.json.part").write_bytes(b"something else")
    session = al.Session(chip("slm", 4))
    with pytest.raises(al.ConfigurationError, match="is not a safetensors file"):
        al.calibrate(session, al.Budget(programs=10), path=path)
    assert session.usage.programs == 0


def test_auto_chooses_the_twin_of_a_calibrated_mesh() -> None:
    device = chip("mzi", 8, phase_bias_std=0.2, gamma_std=0.05)
    record = al.calibrate(device, al.Budget(programs=40))
    plain = al.BlackBoxLinear(chip("mzi", 8, phase_bias_std=0.2, gamma_std=0.05))
    layer = al.BlackBoxLinear(al.devices.CalibratedDevice(device, record))
    names = [(type(each.estimator).__name__, type(each.surrogate).__name__) for each in (plain, layer)]
    assert names == [("Orthogonal", "Online"), ("Twin", "Twin")]
    before = layer.session.usage
    x = torch.rand(32, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    layer(x).square().sum().backward()
    spent = layer.session.usage - before
    assert (spent.programs, spent.vectors) == (0, 32)  # the device holds the controls since the start
    assert x.grad is not None
    assert layer.controls.grad is not None


def test_a_mesh_without_a_twin_warns_about_its_cost() -> None:
    with pytest.warns(
        al.nn.ExpensiveGradientWarning, match=r"'mzi' has 1,122 controls .* needs 100 programs .* 0.29 at best"
    ):
        al.BlackBoxLinear(device_factory(KINDS["mzi"])(32, 34))


# -- following the chip ---------------------------------------------------------------------------


def shifted_constants(device: Any, by: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    bias = device.true_constants["phase_bias"]
    return {**device.true_constants, "phase_bias": bias + by * torch.randn(bias.shape, generator=generator)}


def drifting_twin(by: float) -> tuple[Any, Any, al.surrogates.TwinDrift]:
    """Return the answers of a chip that has drifted since its calibration, its twin, and a twin that follows."""
    device = chip("mzi", 8, phase_bias_std=0.2, gamma_std=0.02)
    record = al.calibrate(device, al.Budget(programs=40))
    later = device_factory(KINDS["mzi"])(8, 8, impairments=device.impairments)
    law = al.devices.make_model(al.devices.FittedModel(name="mzi"), device.spec)
    constants = shifted_constants(device, by)
    twin = al.devices.CalibratedTwin(record)

    def answers(controls: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        raw = law.law({k: v.float() for k, v in constants.items()}, twin.written(controls)[None], twin.sent(inputs))[0]
        return twin.corrected(raw)

    del later
    return answers, twin, al.surrogates.TwinDrift(twin, every=1)


def test_a_twin_follows_its_drifting_chip() -> None:
    answers, twin, drift = drifting_twin(0.05)
    generator = torch.Generator().manual_seed(1)
    controls = 6 * torch.rand(56, generator=generator)
    test = 2 * torch.rand(64, 8, generator=generator) - 1
    true = answers(controls, test)
    before = float((twin.transfer(controls, test) - true).square().mean())
    for _ in range(60):
        x = 2 * torch.rand(64, 8, generator=generator) - 1
        drift.observe(controls, x, answers(controls, x) + 0.02 * torch.randn(64, 8, generator=generator))
    after = float((drift.transfer(controls, test) - true).square().mean())
    assert after < before / 2
    assert not drift.needs_calibration


def test_the_twin_of_a_constant_chip_does_not_change() -> None:
    answers, twin, drift = drifting_twin(0.0)
    generator = torch.Generator().manual_seed(1)
    controls = 6 * torch.rand(56, generator=generator)
    for _ in range(10):
        x = 2 * torch.rand(64, 8, generator=generator) - 1
        drift.observe(controls, x, answers(controls, x))
    x = 2 * torch.rand(64, 8, generator=generator) - 1
    assert torch.equal(drift.transfer(controls, x), twin.transfer(controls, x))


def test_a_twin_far_from_its_chip_requests_a_calibration() -> None:
    _, _, drift = drifting_twin(0.0)
    generator = torch.Generator().manual_seed(1)

    def mismatch() -> None:
        for _ in range(25):
            # Every batch has another setting and random answers, so that no change of the constants explains them.
            controls, x = 6 * torch.rand(56, generator=generator), 2 * torch.rand(32, 8, generator=generator) - 1
            drift.observe(controls, x, torch.randn(32, 8, generator=generator))

    with pytest.warns(al.surrogates.StaleCalibrationWarning, match=r"'mzi' has .* calibrate it again"):
        mismatch()
    assert drift.needs_calibration


def test_a_saved_twin_resumes() -> None:
    answers, twin, drift = drifting_twin(0.05)
    generator = torch.Generator().manual_seed(1)
    controls, x = 6 * torch.rand(56, generator=generator), 2 * torch.rand(32, 8, generator=generator) - 1
    drift.observe(controls, x, answers(controls, x))
    other = al.surrogates.TwinDrift(twin, every=1)
    other.load_state_dict(drift.state_dict())
    assert torch.equal(other.transfer(controls, x), drift.transfer(controls, x))
    assert other.unexplained == drift.unexplained
