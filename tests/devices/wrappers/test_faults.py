"""Test injected faults."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from astralora.devices import (
    DeviceError,
    DeviceTimeout,
    FaultPlan,
    FaultyDevice,
    NotConnected,
    ProgramsMany,
    ProtocolError,
    Retry,
    Session,
    make_device,
)
from astralora.devices.wrappers.faults import CHIP_FAULTS, LINK_FAULTS, FaultDice

W = torch.linspace(-1, 1, 12)
X = torch.linspace(-1, 1, 20).reshape(5, 4)


@pytest.fixture
def running(bench: Any) -> Any:
    def make(**plan: Any) -> FaultyDevice:
        device = FaultyDevice(bench, FaultPlan(**plan))
        device.open()
        return device

    return make


def test_an_empty_plan_injects_nothing(bench: Any, running: Any) -> None:
    device = running()
    device.program(W)
    torch.testing.assert_close(device.query(X), X @ W.reshape(3, 4).T)
    assert device.injected == Counter()
    assert device.spec == bench.spec


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("timeout", DeviceTimeout),
        ("truncated", DeviceTimeout),
        ("late", DeviceTimeout),
        ("corrupt", ProtocolError),
        ("disconnect", NotConnected),
    ],
)
def test_faults_of_the_link_raise_the_errors_of_a_driver(running: Any, kind: Any, error: type[DeviceError]) -> None:
    device = running(at={1: kind})
    device.program(W)
    with pytest.raises(error, match="an injected fault"):
        device.query(X)
    assert device.injected == Counter({kind: 1})


def test_after_a_disconnect_all_calls_fail_until_reopened(running: Any) -> None:
    device = running(at={0: "disconnect"})
    for _ in range(2):
        with pytest.raises(NotConnected, match="the link was closed by the other end; close and open the device"):
            device.program(W)
    device.close()
    device.open()
    device.program(W)


def test_half_of_the_lost_requests_have_been_carried_out(bench: Any, running: Any) -> None:
    device = running(timeout=1.0, seed=3)
    for _ in range(200):
        with pytest.raises(DeviceTimeout):
            device.program(W)
    # 100 of 200 are expected, with a standard deviation of 7; five of these are exceeded once in a million runs.
    assert abs(bench.log.count("program") - 100) < 36


def test_faults_of_the_chip_change_one_output(running: Any) -> None:
    right = X @ W.reshape(3, 4).T
    for kind in CHIP_FAULTS:
        device = running(at={2: kind})
        device.program(W)
        device.query(-X)
        wrong = ~torch.isclose(device.query(X), right, atol=1e-5).all(dim=0)
        assert int(wrong.sum()) <= 1
        if kind == "nan":
            assert wrong.any()
        device.close()


def test_a_chip_with_a_self_test_reports_faults(running: Any) -> None:
    for kind in ("saturated", "stuck"):
        device = running(at={1: kind}, flagged=True)
        device.program(W)
        with pytest.raises(ProtocolError, match=f"the self-test found an output {kind}"):
            device.query(X)


def test_many_settings_in_one_call_are_one_operation() -> None:
    device = FaultyDevice(make_device("matvec", in_features=4, out_features=3), FaultPlan(at={1: "nan"}))
    assert device.capability(ProgramsMany) is device
    device.open()
    assert torch.isfinite(device.query_each(torch.stack([W, W]), X)).all()
    assert int(device.query_each(torch.stack([W, W]), X).isnan().sum()) == 1


def test_a_session_recovers_and_counts_every_fault(matrix_device: Any) -> None:
    plan = FaultPlan.parse("all=0.01,flagged=true,seed=4")
    device = FaultyDevice(matrix_device(idempotent_program=True), plan)
    with Session(device, retry=Retry(attempts=20, wait_seconds=0)) as session:
        for number in range(600):
            controls = W * (1 + number % 7) / 7
            torch.testing.assert_close(session.apply(controls, X), X @ controls.reshape(3, 4).T)
        assert session.usage.retries == sum(device.injected.values())
    assert set(device.injected) == {*LINK_FAULTS, *CHIP_FAULTS}


# -- plans -----------------------------------------------------------------------------------------


def test_a_plan_is_read_from_words_or_from_a_file(tmp_path: Path) -> None:
    words = FaultPlan.parse("timeout=0.25,nan=0.5,seed=3,flagged=true")
    assert words == FaultPlan(timeout=0.25, nan=0.5, seed=3, flagged=True)
    (tmp_path / "plan.toml").write_text("timeout = 0.25\nnan = 0.5\nseed = 3\nflagged = true\n")
    assert FaultPlan.parse(str(tmp_path / "plan.toml")) == words
    everything = FaultPlan.parse("all=0.01,late=0.5")
    assert [getattr(everything, kind) for kind in LINK_FAULTS + CHIP_FAULTS].count(0.01) == 7
    assert everything.late == 0.5


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("often", "'often' is not a fault plan; write, for example, timeout=0.01,nan=0.01,seed=3"),
        ("timeout=2", "timeout: Input should be less than or equal to 1"),
        ("timout=0.1", "timout: there is no such key; known are timeout,"),
        ("nothing.toml", "the fault plan nothing.toml cannot be read: No such file or directory"),
    ],
)
def test_an_invalid_plan_is_described_in_one_sentence(text: str, complaint: str) -> None:
    with pytest.raises(DeviceError) as error:
        FaultPlan.parse(text)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_faults_are_as_frequent_as_planned() -> None:
    dice = FaultDice(FaultPlan(timeout=0.1, corrupt=0.2, seed=1), LINK_FAULTS)
    for _ in range(10_000):
        dice.throw(LINK_FAULTS)
    # The standard deviations are 30 and 40; five of these are exceeded once in a million runs.
    assert abs(dice.injected["timeout"] - 1000) < 150
    assert abs(dice.injected["corrupt"] - 2000) < 200
    assert set(dice.injected) == {"timeout", "corrupt"}


def test_faults_depend_on_the_seed() -> None:
    def draw(seed: int) -> list[Any]:
        dice = FaultDice(FaultPlan(timeout=0.5, seed=seed), LINK_FAULTS)
        return [dice.throw(LINK_FAULTS) for _ in range(50)]

    assert draw(1) == draw(1) != draw(2)
