from typing import Any

import pytest
import torch

from astralora.devices import Device, Differentiable, ProgramsMany, RehearsalDevice, Session


def test_counts_like_the_device_that_it_stands_in_for(simulated: Any, generator: torch.Generator) -> None:
    real = simulated("slm", 4, 3)
    rehearsed = Session(RehearsalDevice(real.spec))
    rehearsed.open()
    settings = torch.rand(5, 12, generator=generator)
    inputs = torch.rand(7, 4, generator=generator)
    for session in (real, rehearsed):
        session.apply(settings[0], inputs)
        assert session.query_each(settings, inputs).shape == (5, 7, 3)
    counts = [(s.usage.programs, s.usage.queries, s.usage.vectors, s.usage.bytes) for s in (real, rehearsed)]
    assert counts[0] == counts[1]


def test_its_clock_goes_by_the_prices_of_the_spec(simulated: Any) -> None:
    real = simulated("slm", 4, 3, impairments="lab")
    rehearsed = Session(RehearsalDevice(real.spec))
    rehearsed.open()
    for session in (real, rehearsed):
        session.query_each(torch.zeros(5, 12), torch.zeros(7, 4))
        session.query(torch.zeros(3, 4))
        session.device.wait(2.0)
    assert rehearsed.device.clock_seconds == pytest.approx(real.device.clock_seconds)  # type: ignore[attr-defined]


def test_has_every_ability_that_costs_or_computes() -> None:
    device: Any = RehearsalDevice.__new__(RehearsalDevice)
    device.spec = None
    assert isinstance(device, Device)
    assert isinstance(device, ProgramsMany)
    assert isinstance(device, Differentiable)
