from typing import Any

import pytest
import torch

from astralora.devices import Device, Differentiable, ProgramsMany, RehearsalDevice, Session, clock_of


def test_counts_operations_like_the_device(simulated: Any, generator: torch.Generator) -> None:
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


def test_the_clock_advances_by_the_times_of_the_spec(simulated: Any) -> None:
    real = simulated("slm", 4, 3, impairments="lab")
    rehearsed = Session(RehearsalDevice(real.spec))
    rehearsed.open()
    for session in (real, rehearsed):
        session.query_each(torch.zeros(5, 12), torch.zeros(7, 4))
        session.query(torch.zeros(3, 4))
        clock_of(session).wait(2.0)
    assert clock_of(rehearsed).clock_seconds == pytest.approx(clock_of(real).clock_seconds)


def test_has_the_capabilities_that_cost_or_compute() -> None:
    device: Any = RehearsalDevice.__new__(RehearsalDevice)
    device.spec = None
    assert isinstance(device, Device)
    assert isinstance(device, ProgramsMany)
    assert isinstance(device, Differentiable)
