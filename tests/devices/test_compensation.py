"""Drift of a chip that is only used, and what undoes it."""

from typing import Any

import pytest
import torch

import devices as d
from simulators import KINDS, Impairments, device_factory


def fading(n: int = 8, m: int = 12, **law: Any) -> Any:
    """A crossbar whose entries decay by powers of time."""
    values = {"drift_nu": 0.05, "drift_t0_seconds": 1.0, "output_noise_fraction": 1e-5, "output_bound": 50.0, **law}
    return device_factory(KINDS["matvec"])(n, m, impairments=Impairments(**values))


def used_for_a_day(kind: Any, generator: torch.Generator, **law: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Answers right after the program, those of a day later, and the session."""
    chip = fading(**law)
    device = chip if kind is None else d.CompensatedDevice(chip, kind)
    session = d.Session(device)
    session.open()
    weights = torch.rand(session.spec.num_controls, generator=generator) - 0.5
    inputs = torch.rand(20, 8, generator=generator) * 2 - 1
    session.program(weights)
    before = session.query(inputs)
    chip.wait(86400.0)
    return before, session.query(inputs), session


def apart(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize("kind", ["global", "output", "columns"])
def test_a_common_fading_is_undone(kind: Any, generator: torch.Generator) -> None:
    before, after, _ = used_for_a_day(None, generator)
    assert apart(before, after) == pytest.approx(1 - 86400**-0.05, rel=0.01)
    before, after, _ = used_for_a_day(kind, generator)
    # Noise of 1e-5 x 50 on answers of about 0.5, twice as strong where it is scaled back: a third of a percent.
    assert apart(before, after) < 0.02


def test_each_output_gets_a_factor_of_its_own(generator: torch.Generator) -> None:
    def uneven(kind: Any) -> float:
        chip = fading(4, 3, drift_nu=0.0, drift_nu_std=1e-9)
        # Outputs that fade by different amounts: the first not at all, the last by most.
        chip._decay._exponents = torch.tensor([0.0, 0.03, 0.06], dtype=torch.float64).repeat_interleave(4)
        session = d.Session(d.CompensatedDevice(chip, kind))
        with session:
            session.program(torch.rand(12, generator=generator) + 0.1 - 0.2)
            inputs = torch.rand(20, 4, generator=generator) * 2 - 1
            before = session.query(inputs)
            chip.wait(1e4)
            return apart(before, session.query(inputs))

    assert uneven("global") > 0.05
    assert uneven("output") < 0.02


def test_references_are_booked_and_come_as_often_as_asked(generator: torch.Generator) -> None:
    chip = fading()
    device = d.CompensatedDevice(chip, "global", every_seconds=10.0, vectors=5)
    with d.Session(device) as session:
        session.program(torch.zeros(96))
        assert device.session.usage_by_purpose["drift"].vectors == 4 * 5
        for _ in range(3):
            session.query(torch.ones(2, 8))
        assert device.session.usage_by_purpose["drift"].vectors == 4 * 5
        chip.wait(11.0)
        session.query(torch.ones(2, 8))
        assert device.session.usage_by_purpose["drift"].vectors == 5 * 5
        assert session.usage.vectors == 5 * 5 + 4 * 2


def test_columns_take_outputs_and_no_vectors(generator: torch.Generator) -> None:
    _, _, session = used_for_a_day("columns", generator)
    assert (session.spec.out_features, session.spec.num_controls) == (12 - 4, 8 * 8)
    # Right after the program, and never again.
    assert session.usage.vectors == 2 * 8 + 20 + 20


def test_what_the_budget_does_not_cover_is_refused_before_the_program(generator: torch.Generator) -> None:
    chip = fading()
    with d.Session(d.CompensatedDevice(chip, "output", vectors=16), budget=d.Budget(vectors=63)) as session:
        with pytest.raises(d.BudgetExceeded):
            session.program(torch.zeros(96))
        assert session.usage.programs == 0


def test_a_dead_output_does_no_harm(generator: torch.Generator) -> None:
    before, after, session = used_for_a_day("output", generator, dead_output_fraction=1 / 12)
    factor = session.device.factor
    assert bool(torch.isfinite(factor).all())
    assert float(factor.max()) < 3
    assert apart(before, after) < 0.02


def test_a_saved_compensation_goes_on(generator: torch.Generator) -> None:
    _, _, session = used_for_a_day("output", generator)
    state = session.state_dict()
    other = d.Session(d.CompensatedDevice(fading(), "output"))
    other.open()
    assert other.load_state_dict(state)
    inputs = torch.rand(3, 8, generator=generator)
    assert torch.equal(other.query(inputs), session.query(inputs))


@pytest.mark.parametrize(
    ("kind", "chip", "sentence"),
    [
        ("colour", "matvec", "there is no compensation 'colour'; known are global, output, columns"),
        ("global", "diffractive", "is not linear: no factor undoes its drift"),
        ("columns", "mzi", "where every matrix entry has a control of its own"),
    ],
)
def test_what_cannot_be_compensated_is_refused(kind: Any, chip: str, sentence: str) -> None:
    with pytest.raises(d.DeviceError, match=sentence):
        d.CompensatedDevice(device_factory(KINDS[chip])(8, 8), kind)
