"""Test measurements of a device: deliberate flaws must be found, and no others."""

import math
import random
from typing import Any

import pytest
import torch

import astralora as al
from astralora.characterisation.context import MeasurementContext, lattice_step
from astralora.probing.probes import lit_probes
from astralora.simulators import KINDS, Impairments, device_factory

PROGRAMS, VECTORS = 150, 20_000


class Unspecified(al.devices.DeviceWrapper):
    """Wrap a chip in a spec without converter levels and noise, so that both must be measured."""

    @property
    def spec(self) -> al.DeviceSpec:
        hidden = {"control_levels": None, "input_levels": None, "output_levels": None, "noise_std": 0.0}
        return self.device.spec.model_copy(update=hidden)


def make_flawed_chip(seed: int) -> tuple[Any, dict[str, float]]:
    """Make a random chip, and return it with its flaws."""
    draw = random.Random(seed)
    kind = draw.choice(["matvec", "slm", "mrr"])
    truth = {
        "control_levels": 2 ** draw.randint(5, 8),
        "input_levels": 2 ** draw.randint(5, 8) - 1,
        "output_levels": 2 ** draw.randint(5, 8) - 1,
        "crosstalk": draw.uniform(0, 0.02),
        "drift_exponent": draw.uniform(0, 0.06) if kind == "matvec" else 0.0,
    }
    noise = draw.uniform(0.003, 0.02)
    law = Impairments(
        control_levels=truth["control_levels"],
        input_levels=truth["input_levels"],
        output_levels=truth["output_levels"],
        output_noise_fraction=noise,
        crosstalk=truth["crosstalk"],
        phase_bias_std=0.05 if kind != "matvec" else 0.0,
        gamma_std=0.005,
        dead_output_fraction=2 / 16,
        stuck_fraction=1 / 256,
        drift_nu=truth["drift_exponent"],
        drift_t0_seconds=1e-4,
    )
    device = device_factory(KINDS[kind])(16, 16, impairments=law, seed=seed)
    assert device.spec.output_range is not None
    return device, {**truth, "noise_std": noise * device.spec.output_range[1]}


@pytest.mark.parametrize("seed", range(20))
def test_flaws_are_found_within_the_stated_bounds_and_the_budget(seed: int) -> None:
    device, truth = make_flawed_chip(seed)
    budget = al.Budget(programs=PROGRAMS, vectors=VECTORS)
    session = al.Session(Unspecified(device), budget)
    found = al.characterise(session, budget, seed=seed)
    for name, true in truth.items():
        finding = found[name]
        assert finding.low is not None, name
        assert finding.high is not None, f"{name}: {finding.sentence}"
        assert finding.low <= true <= finding.high, f"{name}: {true} is the truth, {finding.sentence}"
    answers = device.transfer(torch.full((device.spec.num_controls,), 0.3), torch.eye(16))
    dead = (answers.std(dim=0) == 0).nonzero()[:, 0].tolist()
    assert found["dead_outputs"].data["which"] == sorted(dead)
    stuck = [int(place) for place in (~device.fixed_controls.isnan()).nonzero()[:, 0] if place // 16 not in dead]
    assert found["stuck_controls"].data["which"] == stuck
    assert session.usage.programs <= PROGRAMS
    assert session.usage.vectors <= VECTORS
    assert (found.spent["programs"], found.spent["vectors"]) == (session.usage.programs, session.usage.vectors)


@pytest.mark.parametrize("kind", ["slm", "mzi", "lowrank", "diffractive", "identity", "monarch"])
def test_a_chip_that_meets_its_spec_contradicts_no_claim(kind: str) -> None:
    physics = {"rank": 2} if kind == "lowrank" else {}
    law = Impairments(input_levels=255, output_levels=255, output_noise_fraction=0.01)
    device = device_factory(KINDS[kind])(8, 8, impairments=law, **physics)
    found = al.characterise(device)
    assert found.unmet_claims == []
    assert found["output_levels"].value == 255


def test_wrong_claims_are_reported() -> None:
    class Overstated(al.devices.DeviceWrapper):
        @property
        def spec(self) -> al.DeviceSpec:
            true = self.device.spec
            return true.model_copy(update={"output_levels": 1023, "noise_std": true.noise_std / 3})

    law = Impairments(output_levels=255, output_noise_fraction=0.01)
    found = al.characterise(Overstated(device_factory(KINDS["slm"])(8, 8, impairments=law)))
    assert {finding.name for finding in found.unmet_claims} >= {"output_levels", "noise_std"}


@pytest.mark.parametrize(("programs", "vectors"), [(3, 300), (12, 700), (30, 2000), (90, 5000), (400, 50_000)])
def test_no_budget_is_exceeded_by_a_single_vector(programs: int, vectors: int) -> None:
    law = Impairments(output_levels=63, output_noise_fraction=0.01)
    session = al.Session(device_factory(KINDS["mrr"])(6, 5, impairments=law, max_batch=7))
    found = al.characterise(session, al.Budget(programs=programs, vectors=vectors))
    assert session.usage.programs <= programs
    assert session.usage.vectors <= vectors
    assert "noise_std" in found
    if programs < 10:
        assert found.skipped["drift"] == "the budget is too small for it"


def test_a_budget_below_the_cost_of_noise_is_refused_before_anything_is_spent() -> None:
    session = al.Session(device_factory(KINDS["mrr"])(6, 5))
    with pytest.raises(al.ConfigurationError, match=r"takes at least 2 programs and .* vectors, for noise alone"):
        al.characterise(session, al.Budget(programs=1))
    assert session.usage.programs == 0


def test_an_unknown_measurement_is_refused() -> None:
    with pytest.raises(al.ConfigurationError, match="there is no measurement 'colour'; known are noise, survey"):
        al.characterise(device_factory(KINDS["mrr"])(4, 4), only=["colour"])


def test_incomplete_settling_is_measured() -> None:
    law = Impairments(settle_tau_seconds=1e-3, settle_seconds=1e-3, output_noise_fraction=0.002, vector_seconds=1e-4)
    found = al.characterise(device_factory(KINDS["slm"])(8, 8, impairments=law), only=["settling"])
    settling = found["settling"]
    assert settling.agrees is False
    # A share e^-1 of the jump remains after the program, and e^-1.8 after the eight vectors of the first look. Cosines
    # of steps of pi / 4 behave as straight lines to a tenth.
    assert settling.value == pytest.approx(math.exp(-1.8), rel=0.15)


def test_decay_is_not_mistaken_for_settling() -> None:
    law = Impairments(drift_nu=0.08, drift_t0_seconds=1e-4, output_noise_fraction=0.002)
    for kind in ("slm", "mrr"):
        found = al.characterise(device_factory(KINDS[kind])(8, 8, impairments=law), only=["settling"])
        assert found["settling"].agrees is True


@pytest.mark.parametrize("count", [8, 12, 16, 24])
def test_half_of_the_probe_vectors_light_each_nonnegative_input(count: int) -> None:
    X = lit_probes(count, torch.float64)
    order = len(X)
    expected = 4 / order * (torch.eye(count) - 1 / (count + 1))
    torch.testing.assert_close(torch.linalg.inv(X.mT @ X), expected.double())
    spread = torch.linalg.pinv(X).sum(dim=1)
    torch.testing.assert_close(spread, torch.full_like(spread, 2 / (count + 1)))


def test_slow_noise_is_distinguished_from_white_noise() -> None:
    white = Impairments(output_noise_fraction=0.01, vector_seconds=1e-4)
    slow = white.model_copy(update={"flicker_std": 0.05, "flicker_seconds": (1e-3, 10.0)})
    corners = [
        al.characterise(device_factory(KINDS["slm"])(8, 8, impairments=law), only=["noise"])["flicker_corner"].value
        for law in (white, slow)
    ]
    assert corners[0] == 0.0
    assert corners[1] is not None
    assert corners[1] > 10.0


@pytest.mark.parametrize("step", [0.02, 0.1])
def test_the_step_of_values_on_a_lattice_is_found(step: float, generator: torch.Generator) -> None:
    values = torch.randn(3000, generator=generator)
    assert lattice_step(values) == 0.0
    assert lattice_step((values / step).round() * step - 0.003) == pytest.approx(step, rel=1e-4)


@pytest.mark.parametrize("share", [0.2, 0.5, 2.0])
def test_noise_is_separated_from_rounding_even_below_one_step(share: float, generator: torch.Generator) -> None:
    device = device_factory(KINDS["matvec"])(4, 16, impairments=Impairments(output_levels=101))
    context = MeasurementContext(al.Session(device), 0)
    step = device.spec.output_step
    assert step is not None
    centres = torch.rand(1, 20, 16, generator=generator, dtype=torch.float64) * 0.5
    noisy = centres + share * step * torch.randn(400, 20, 16, generator=generator, dtype=torch.float64)
    _, noise, error = context.estimate_noise((noisy / step).round() * step)
    assert abs(noise - share * step) < 5 * error < 0.25 * share * step


def test_a_characterisation_comes_back_from_json() -> None:
    found = al.characterise(device_factory(KINDS["slm"])(4, 4), only=["noise"])
    assert al.Characterisation.model_validate_json(found.model_dump_json()) == found


def test_a_characterisation_is_an_escaped_table_in_a_notebook() -> None:
    found = al.characterise(device_factory(KINDS["slm"])(4, 4), only=["noise"])
    finding = found["noise_std"].model_copy(update={"agrees": False, "unit": "<script>"})
    html = found.model_copy(update={"findings": (finding,), "serial_number": "a & b"})._repr_html_()
    assert "Characterisation of a &amp; b" in html
    assert "noise of outputs, &lt;script&gt;" in html
    assert "contradicts the spec" in html
    assert "<script" not in html
