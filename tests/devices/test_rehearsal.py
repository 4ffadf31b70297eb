from typing import Any

import torch

from devices import Device, Differentiable, ProgramsMany, RehearsalDevice, Session


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


def test_has_every_ability_that_costs_or_computes() -> None:
    device: Any = RehearsalDevice.__new__(RehearsalDevice)
    device.spec = None
    assert isinstance(device, Device)
    assert isinstance(device, ProgramsMany)
    assert isinstance(device, Differentiable)
