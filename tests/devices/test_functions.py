"""Test devices made of functions."""

import numpy as np
import pytest
import torch

import astralora.devices as d

SPEC = d.DeviceSpec(name="cell", in_features=3, out_features=2, num_controls=6, control_range=(0, 5), linear=True)


def test_functions_make_a_device() -> None:
    volts = np.zeros((2, 3))
    device = d.wrap_device(SPEC, program=lambda w: np.copyto(volts, w.reshape(2, 3)), query=lambda x: x @ volts.T)
    with d.Session(device) as session:
        answer = session.apply(torch.arange(6.0).clamp(max=5), torch.eye(3))
    assert torch.equal(answer, torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]))


def test_opens_and_closes_by_functions() -> None:
    log: list[str] = []
    device = d.wrap_device(
        SPEC,
        program=lambda w: log.append("program"),
        query=lambda x: np.zeros((len(x), 2)),
        open=lambda: log.append("open"),
        close=lambda: log.append("safe"),
    )
    with d.Session(device) as session:
        session.apply(torch.zeros(6), torch.zeros(1, 3))
    assert log == ["open", "program", "safe"]


def test_is_checked_like_any_device() -> None:
    device = d.wrap_device(SPEC, program=lambda w: None, query=lambda x: x)
    with d.Session(device) as session:
        with pytest.raises(d.OutOfRange, match="must stay within 0 to 5"):
            session.program(torch.full((6,), 6.0))
        session.program(torch.zeros(6))
        with pytest.raises(d.ProtocolError, match=r"shape \(1, 3\); it must return shape \(1, 2\)"):
            session.query(torch.zeros(1, 3))
