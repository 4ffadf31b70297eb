"""Test that a wrapper changes only what it overrides, and offers only the capabilities that it lists."""

from pathlib import Path
from typing import Any

import pytest
import torch

import astralora.devices as d
from astralora.devices import (
    Clock,
    Composite,
    Device,
    DeviceError,
    DeviceWrapper,
    Differentiable,
    FaultPlan,
    FaultyDevice,
    Flushes,
    ForwardsCapabilities,
    Identifiable,
    ProgramsMany,
    PullsBack,
    Reciprocal,
    RecordingDevice,
    ReplayDevice,
    Session,
    Snapshots,
    Thermometer,
    capability_of,
)
from astralora.devices.testing import MockDevice, check_device

W = torch.linspace(-1, 1, 12)
X = torch.linspace(-1, 1, 20).reshape(5, 4)


class Scaled(DeviceWrapper):
    """Double the outputs, as in the example of the documentation."""

    adapts = (ProgramsMany,)

    def query(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * self.device.query(inputs)

    def query_each(self, controls: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * self.behind(ProgramsMany).query_each(controls, inputs)


class Piped(MockDevice):
    capabilities = (Flushes,)

    def flush(self) -> None:
        self.calls.append("flush")


def simulated(**options: Any) -> d.Device:
    return d.make_device("matvec", in_features=4, out_features=3, **options)


# -- forwarding -----------------------------------------------------------------------------------


def test_forwards_every_operation() -> None:
    mock = MockDevice(otherwise=lambda w, x: x @ w.view(3, 4).T)
    wrapper = DeviceWrapper(mock)
    assert isinstance(wrapper, Device)
    assert isinstance(wrapper, ForwardsCapabilities)
    assert wrapper.spec is mock.spec
    wrapper.open()
    wrapper.program(W)
    torch.testing.assert_close(wrapper.query(X), X @ W.view(3, 4).T)
    wrapper.close()
    mock.assert_calls("open", "program", "query", "close")


def test_a_wrapper_of_ten_lines_keeps_the_contract() -> None:
    results = check_device(lambda: Scaled(simulated()))
    assert [(result.check, result.detail) for result in results if not result.passed] == []


def test_overrides_only_what_it_changes() -> None:
    with Session(Scaled(simulated())) as session:
        torch.testing.assert_close(session.apply(W, X), 2 * X @ W.view(3, 4).T)
        answers = session.query_each(torch.stack([W, -W]), X)
        torch.testing.assert_close(answers[1], -2 * X @ W.view(3, 4).T)


def test_forwards_the_state_of_the_chip_and_of_its_link() -> None:
    chip = simulated()
    for protocol in (Clock, Snapshots, Thermometer):
        assert Scaled(chip).capability(protocol) is chip
    piped = Piped()
    assert Scaled(piped).capability(Flushes) is piped


def test_hides_the_law_of_the_chip_which_is_not_that_of_the_wrapper() -> None:
    chip = simulated()
    for protocol in (Differentiable, Identifiable, PullsBack, Reciprocal):
        assert capability_of(chip, protocol) is chip
        assert Scaled(chip).capability(protocol) is None


# -- adapting -------------------------------------------------------------------------------------


def test_adapts_a_capability_only_where_the_device_has_it() -> None:
    capable, plain = Scaled(simulated()), Scaled(MockDevice())
    assert capable.capability(ProgramsMany) is capable
    assert plain.capability(ProgramsMany) is None
    with pytest.raises(TypeError, match="MockDevice does not have the capability ProgramsMany"):
        plain.query_each(torch.stack([W]), X)


def test_adapts_through_other_wrappers() -> None:
    outer = Scaled(Scaled(Session(simulated())))
    assert outer.capability(ProgramsMany) is outer
    with Session(outer) as session:
        torch.testing.assert_close(session.query_each(torch.stack([W]), X)[0], 4 * X @ W.view(3, 4).T)
        assert session.usage.programs == 1


def test_an_adapted_capability_without_its_methods_is_an_error() -> None:
    class Forgetful(DeviceWrapper):
        adapts = (Reciprocal,)

    with pytest.raises(TypeError, match="Forgetful declares the capability Reciprocal, but lacks a method"):
        Forgetful(simulated()).capability(Reciprocal)
    assert Forgetful(MockDevice()).capability(Reciprocal) is None


# -- the wrappers of this package -----------------------------------------------------------------


def recording(chip: d.Device, path: Path) -> DeviceWrapper:
    return RecordingDevice(chip, path / "run.safetensors")


def faulty(chip: d.Device, path: Path) -> DeviceWrapper:
    return FaultyDevice(chip, FaultPlan())


@pytest.mark.parametrize("wrap", [recording, faulty])
def test_recording_and_injecting_faults_keep_the_chip_as_it_is(wrap: Any, tmp_path: Path) -> None:
    chip = simulated()
    wrapper = wrap(chip, tmp_path)
    for protocol in (Clock, Differentiable, Identifiable, PullsBack, Snapshots, Thermometer):
        assert wrapper.capability(protocol) is chip
    assert wrapper.capability(Reciprocal) is wrapper
    piped = Piped()
    assert wrap(piped, tmp_path).capability(Flushes) is piped
    assert wrap(piped, tmp_path).capability(Reciprocal) is None


@pytest.mark.parametrize("wrap", [recording, faulty])
def test_a_session_behaves_the_same_around_them(wrap: Any, tmp_path: Path) -> None:
    answers = []
    for wrapped in (False, True):
        chip = simulated(impairments="lab", seed=3)
        with Session(wrap(chip, tmp_path) if wrapped else chip) as session:
            state = session.state_dict()
            found = [session.apply(W, X), session.query_adjoint(torch.full((2, 3), 0.1))]
            law = session.capability(Differentiable)
            assert law is not None
            found.append(law.transfer(W, X))
            d.clock_of(session).wait(1e5)
            found.append(session.query(X))
            assert session.load_state_dict(state)
            found.append(session.apply(W, X))
            answers.append(found)
    assert all(map(torch.equal, *answers))


def test_a_recording_holds_the_operations_of_all_chips_of_a_tiled_device(tmp_path: Path) -> None:
    tiled = d.TiledDevice([simulated(seed=seed) for seed in range(2)], 8, 3)
    recorder = RecordingDevice(tiled, tmp_path / "run")
    assert recorder.capability(Composite) is tiled
    with Session(recorder) as session:
        session.apply(torch.zeros(24), torch.zeros(5, 8))
        assert (session.usage.programs, session.usage.vectors) == (2, 10)


def test_settings_of_one_call_are_recorded_one_by_one(tmp_path: Path) -> None:
    settings = torch.stack([W, -W, W / 2])
    recorder = RecordingDevice(simulated(), tmp_path / "run")
    assert recorder.capability(ProgramsMany) is None
    with Session(recorder) as session:
        answers = session.query_each(settings, X)
    replay = ReplayDevice(tmp_path / "run")
    assert replay.remaining == 6
    with Session(replay) as session:
        assert torch.equal(session.query_each(settings, X), answers)


@pytest.mark.parametrize("match", ["order", "content"])
def test_a_recording_of_the_reverse_port_is_replayed(match: Any, tmp_path: Path) -> None:
    outputs = torch.linspace(-0.5, 0.5, 6).view(2, 3)
    with Session(RecordingDevice(simulated(impairments="lab"), tmp_path / "run")) as session:
        forward = session.apply(W, X)
        backward = session.query_adjoint(outputs)
    replay = ReplayDevice(tmp_path / "run", match=match)
    assert capability_of(replay, Reciprocal) is replay
    with Session(replay) as session:
        assert torch.equal(session.apply(W, X), forward)
        assert torch.equal(session.query_adjoint(outputs), backward)
        with pytest.raises(DeviceError, match="the recording"):
            session.query_adjoint(outputs / 2)


def test_a_recording_without_reverse_queries_has_no_reverse_port(tmp_path: Path) -> None:
    with Session(RecordingDevice(simulated(), tmp_path / "run")) as session:
        session.apply(W, X)
    assert capability_of(ReplayDevice(tmp_path / "run"), Reciprocal) is None


def test_a_fault_reaches_the_reverse_port() -> None:
    device = FaultyDevice(simulated(), FaultPlan(at={1: "nan"}))
    device.open()
    device.program(W)
    assert int(device.query_adjoint(torch.full((2, 3), 0.1)).isnan().sum()) == 1
    assert device.injected == {"nan": 1}
