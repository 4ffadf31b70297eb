"""Test that capabilities count where they are declared, and only there."""

from typing import Any, Protocol, runtime_checkable

import pytest
import torch

import astralora.devices as d
from astralora.devices import (
    ChecksRequests,
    Differentiable,
    Flushes,
    ProgramsMany,
    Reciprocal,
    Resends,
    Session,
    Snapshots,
    capability_of,
)
from astralora.devices.testing import MockDevice, check_device

W = torch.linspace(-1, 1, 12)
X = torch.linspace(-1, 1, 20).reshape(5, 4)


class WithFlush(MockDevice):
    """Have the method of a capability without declaring it."""

    def flush(self) -> None:
        self.calls.append("flush")


class Declared(WithFlush):
    capabilities = (Flushes,)


class Promised(MockDevice):
    """Declare a capability without its methods."""

    capabilities = (Flushes, Snapshots)

    def flush(self) -> None:
        pass


class Everything(MockDevice):
    """Answer forwards, backwards, many settings at once, unchecked and again."""

    capabilities = (ChecksRequests, ProgramsMany, Reciprocal, Resends)

    def query_each(self, controls: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        self.calls.append("query_each")
        self.programmed += list(controls)
        return torch.stack([inputs @ setting.view(3, 4).T for setting in controls])

    def query_adjoint(self, outputs: torch.Tensor) -> torch.Tensor:
        self.calls.append("query_adjoint")
        return outputs @ self.programmed[-1].view(3, 4)

    def program_unchecked(self, controls: torch.Tensor) -> None:
        self.program(controls)

    def query_unchecked(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.query(inputs)

    def resend(self) -> torch.Tensor | None:
        self.calls.append("resend")
        return None


def everything() -> Everything:
    return Everything(otherwise=lambda w, x: x @ w.view(3, 4).T)


# -- declaring ------------------------------------------------------------------------------------


def test_a_declared_capability_is_found() -> None:
    device = Declared()
    assert capability_of(device, Flushes) is device
    assert Session(device).capability(Flushes) is device


def test_a_method_without_a_declaration_does_not_count() -> None:
    device = WithFlush()
    assert isinstance(device, Flushes)
    assert capability_of(device, Flushes) is None
    assert Session(device).capability(Flushes) is None


def test_a_declaration_without_the_methods_is_an_error() -> None:
    device = Promised()
    assert capability_of(device, Flushes) is device
    sentence = "Promised declares the capability Snapshots, but lacks a method or property of it"
    with pytest.raises(TypeError, match=sentence):
        capability_of(device, Snapshots)
    with pytest.raises(TypeError, match=sentence):
        Session(device).capability(Snapshots)


def test_the_kit_reports_a_declaration_without_the_methods() -> None:
    (result,) = check_device(Promised, only=["capabilities"])
    assert not result.passed
    assert result.detail.startswith("Promised declares the capability Snapshots")


def test_a_device_without_declarations_has_no_capability(bench: Any) -> None:
    assert capability_of(bench, Snapshots) is None
    assert capability_of(object(), Snapshots) is None


def test_capabilities_may_differ_from_chip_to_chip() -> None:
    one = WithFlush()
    other: Any = WithFlush()
    other.capabilities = (Flushes,)
    assert capability_of(one, Flushes) is None
    assert capability_of(other, Flushes) is other


# -- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [ChecksRequests, Resends])
def test_a_session_hides_what_bypasses_its_checks_and_counters(protocol: Any) -> None:
    device = everything()
    assert capability_of(device, protocol) is device
    assert Session(device).capability(protocol) is None
    assert Session(Session(device)).capability(protocol) is None


@pytest.mark.parametrize("protocol", [ProgramsMany, Reciprocal])
def test_a_session_itself_provides_what_it_counts(protocol: Any) -> None:
    inner = Session(everything())
    outer = Session(inner)
    assert inner.capability(protocol) is inner
    assert outer.capability(protocol) is outer
    assert Session(MockDevice()).capability(protocol) is None


def test_nested_sessions_both_count_what_a_capability_costs() -> None:
    device = everything()
    inner = Session(device)
    with Session(inner) as outer:
        many, reverse = capability_of(outer, ProgramsMany), capability_of(outer, Reciprocal)
        assert many is not None
        assert reverse is not None
        many.query_each(torch.stack([W, -W]), X)
        reverse.query_adjoint(torch.ones(2, 3))
        for session in (outer, inner):
            assert (session.usage.programs, session.usage.queries, session.usage.vectors) == (2, 3, 12)
    assert device.calls == ["open", "query_each", "query_adjoint", "close"]


def test_a_session_hands_out_the_state_and_the_law_of_the_chip(simulated: Any) -> None:
    session = simulated("slm", 4, 3)
    for protocol in (d.Clock, Differentiable, d.Identifiable, d.PullsBack, Snapshots, d.Thermometer):
        assert session.capability(protocol) is session.device
        assert Session(session).capability(protocol) is session.device


# -- protocols of other packages ------------------------------------------------------------------


@runtime_checkable
class Shutter(Protocol):
    """Stand for a capability that another package defines."""

    def shut(self) -> str: ...


class WithShutter(MockDevice):
    capabilities = (Shutter,)

    def shut(self) -> str:
        return "shut"


def test_a_protocol_of_another_package_is_found_behind_sessions() -> None:
    device = WithShutter()
    shutter = Session(Session(device)).capability(Shutter)
    assert shutter is device
    assert shutter.shut() == "shut"


def test_a_wrapper_passes_on_a_protocol_of_another_package_only_if_it_says_so() -> None:
    class Passing(d.DeviceWrapper):
        forwards = (*d.DeviceWrapper.forwards, Shutter)

    device = WithShutter()
    assert capability_of(d.DeviceWrapper(device), Shutter) is None
    assert capability_of(Passing(device), Shutter) is device
