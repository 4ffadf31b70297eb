"""Test the device that answers from a script."""

import pytest
import torch

from astralora.devices import Device, DeviceTimeout, NotConnected, Retry, Session
from astralora.devices.testing import MockDevice


def test_answers_its_script_in_order() -> None:
    mock = MockDevice(answers=[[[1.0, 2.0, 3.0]], lambda w, x: x[:, :3] + w[0]])
    assert isinstance(mock, Device)
    with Session(mock) as session:
        session.program(torch.full((12,), 0.5))
        assert session.query(torch.zeros(1, 4)).tolist() == [[1.0, 2.0, 3.0]]
        assert session.query(torch.ones(1, 4)).tolist() == [[1.5, 1.5, 1.5]]
        with pytest.raises(AssertionError, match="query 3 was made, but the script has only 2 answers"):
            session.query(torch.zeros(1, 4))
    mock.assert_calls("open", "program", "query", "query", "query", "close")
    mock.assert_exhausted()


def test_an_exception_in_the_script_is_raised_once() -> None:
    mock = MockDevice(answers=[DeviceTimeout("late"), [[0.0, 0.0, 0.0]]])
    with Session(mock, retry=Retry(wait_seconds=0)) as session:
        session.apply(torch.zeros(12), torch.zeros(1, 4))
        assert session.usage.retries == 1


def test_asserts_what_was_programmed() -> None:
    mock = MockDevice(otherwise=lambda w, x: x[:, :3])
    with Session(mock) as session:
        session.program(torch.linspace(0, 1, 12))
    mock.assert_programmed(torch.linspace(0, 1, 12))
    with pytest.raises(AssertionError, match="11 of 12 programmed controls are wrong, the first is control 1"):
        mock.assert_programmed([0.0] * 12)
    with pytest.raises(AssertionError, match="calls were open, program, close; expected were open"):
        mock.assert_calls("open")


def test_unused_answers_are_an_error() -> None:
    mock = MockDevice()
    mock.answer([[0.0, 0.0, 0.0]])
    with pytest.raises(AssertionError, match="1 answers of the script were not used"):
        mock.assert_exhausted()


def test_refuses_operations_while_closed_or_unprogrammed() -> None:
    mock = MockDevice(otherwise=lambda w, x: x[:, :3])
    with pytest.raises(NotConnected, match="is closed"):
        mock.program(torch.zeros(12))
    mock.open()
    with pytest.raises(NotConnected, match="no controls are set"):
        mock.query(torch.zeros(1, 4))
