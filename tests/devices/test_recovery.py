"""Test a session around a device whose link has faults."""

import logging
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from astralora.devices import (
    Budget,
    BudgetExceeded,
    DeviceError,
    DeviceTimeout,
    Flushes,
    NotConnected,
    OutOfRange,
    ProtocolError,
    Resends,
    Retry,
    Session,
    TiledDevice,
)

W = torch.linspace(-1, 1, 12)
X = torch.linspace(-1, 1, 20).reshape(5, 4)
AT_ONCE = Retry(attempts=4, wait_seconds=0)
# Queries of seven single vectors show that no late answer comes, if no answer is known yet.
COMPARED = ["query 1"] * 7


def replace(chip: Any, operation: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Replace an operation of a driver, and return the replaced one."""
    replaced: Callable[..., Any] = getattr(chip, f"_{operation}")
    setattr(chip, f"_{operation}", call)
    return replaced


def inject(chip: Any, operation: str, *faults: Exception | None) -> None:
    """Let the next calls of an operation raise these faults, one per call; None lets a call pass."""
    left = list(faults)

    def fail(*arguments: Any) -> Any:
        fault = left.pop(0) if left else None
        if fault is not None:
            raise fault
        return call(*arguments)

    call = replace(chip, operation, fail)


@pytest.fixture
def chip(matrix_device: Any) -> Any:
    return matrix_device(idempotent_program=True)


@pytest.fixture
def session(chip: Any) -> Session:
    session = Session(chip, retry=AT_ONCE)
    session.open()
    return session


@pytest.mark.parametrize("fault", [DeviceTimeout("late"), ProtocolError("garbled"), NotConnected("gone")])
def test_a_query_is_repeated_on_a_device_that_was_reopened_and_programmed_anew(
    chip: Any, session: Session, fault: DeviceError
) -> None:
    session.program(W)
    chip.log.clear()
    inject(chip, "query", fault)
    torch.testing.assert_close(session.query(X), X @ W.reshape(3, 4).T)
    assert chip.log == ["close", "open", "program", *COMPARED, "program", "query 5"]


def test_every_attempt_is_counted(chip: Any, session: Session) -> None:
    inject(chip, "query", DeviceTimeout("late"), DeviceTimeout("late"))
    session.apply(W, X)
    usage = session.usage
    assert (usage.programs, usage.queries, usage.vectors, usage.retries) == (4, 1 + 1 + 7 + 1, 5 + 1 + 7 + 5, 2), (
        "the second fault interrupts the comparison of seven vectors"
    )


def test_a_program_is_repeated_where_the_spec_allows_it(chip: Any, session: Session) -> None:
    inject(chip, "program", DeviceTimeout("no acknowledgement"))
    session.program(W)
    assert session.usage.programs == 2
    assert session.usage.retries == 1
    session.program(W)
    assert session.usage.programs == 2, "the device holds these controls"


def test_controls_are_restored_in_the_middle_of_a_long_batch(matrix_device: Any) -> None:
    chip = matrix_device(idempotent_program=True, max_batch=2)
    with Session(chip, retry=AT_ONCE) as session:
        session.program(W)
        inject(chip, "query", None, NotConnected("gone"))
        torch.testing.assert_close(session.query(X), X @ W.reshape(3, 4).T)
    known = "query 1"
    assert chip.log == ["open", "program", "query 2", "close", "open", "program", known, "query 2", "query 1", "close"]


def test_a_query_with_an_answer_that_is_not_finite_is_repeated(chip: Any, session: Session) -> None:
    session.program(W)
    answers = [torch.full((5, 3), float("nan")).numpy()]
    correct = replace(chip, "query", lambda inputs: answers.pop() if answers else correct(inputs))
    assert torch.isfinite(session.query(X)).all()
    assert session.usage.retries == 1


def test_attempts_are_limited_and_the_newest_fault_is_raised(chip: Any, session: Session) -> None:
    session.program(W)
    inject(chip, "query", *(DeviceTimeout(f"silence {number}") for number in range(4)))
    with pytest.raises(DeviceTimeout, match="silence 3"):
        session.query(X)
    assert session.usage.retries == 3


def test_the_query_after_the_last_attempt_finds_its_controls(chip: Any, session: Session) -> None:
    session.program(W)
    inject(chip, "query", *(DeviceTimeout("silence") for _ in range(4)))
    with pytest.raises(DeviceTimeout):
        session.query(X)
    chip.weights = None
    torch.testing.assert_close(session.query(X), X @ W.reshape(3, 4).T)


def test_pauses_double(chip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    retry = Retry(attempts=5, wait_seconds=0.5, longest_wait_seconds=1.5)
    with Session(chip, retry=retry) as session:
        inject(chip, "program", *(DeviceTimeout("late") for _ in range(4)))
        session.program(W)
    assert pauses == [0.5, 1.0, 1.5, 1.5]


def test_a_failed_reopening_counts_as_an_attempt(chip: Any, session: Session) -> None:
    session.program(W)
    inject(chip, "query", NotConnected("gone"))
    inject(chip, "open", NotConnected("not yet back"))
    torch.testing.assert_close(session.query(X), X @ W.reshape(3, 4).T)
    assert session.usage.retries == 2


def test_a_close_that_fails_does_not_keep_a_device_from_being_reopened(chip: Any, session: Session) -> None:
    session.program(W)
    inject(chip, "query", NotConnected("gone"))
    inject(chip, "close", NotConnected("gone"))
    torch.testing.assert_close(session.query(X), X @ W.reshape(3, 4).T)


@pytest.mark.parametrize("error", [OutOfRange("too hot"), DeviceError("interlock open"), ValueError("a bug")])
def test_other_errors_are_not_repeated(chip: Any, session: Session, error: Exception) -> None:
    session.program(W)
    inject(chip, "query", error)
    with pytest.raises(type(error)):
        session.query(X)
    assert session.usage.retries == 0


def test_a_query_with_an_answer_of_the_wrong_shape_is_not_repeated(chip: Any, session: Session) -> None:
    session.program(W)
    replace(chip, "query", lambda inputs: inputs)
    with pytest.raises(ProtocolError, match="shape"):
        session.query(X)
    assert session.usage.retries == 0


def test_repetitions_stay_within_the_budget(chip: Any) -> None:
    with Session(chip, Budget(programs=1), retry=AT_ONCE) as session:
        session.program(W)
        inject(chip, "query", DeviceTimeout("late"))
        with pytest.raises(BudgetExceeded, match="2 programs of a budget of 1"):
            session.query(X)
        assert session.usage.programs == 1


def test_a_single_attempt_is_not_repeated(chip: Any) -> None:
    with Session(chip, retry=Retry(attempts=1)) as session:
        inject(chip, "program", DeviceTimeout("late"))
        with pytest.raises(DeviceTimeout):
            session.program(W)


def test_faults_are_logged(chip: Any, session: Session, caplog: pytest.LogCaptureFixture) -> None:
    inject(chip, "program", DeviceTimeout("late"))
    with caplog.at_level(logging.WARNING, "astralora.devices"):
        session.program(W)
    assert "device 'bench', program: late; attempt 2 of 4" in caplog.text


# -- devices without idempotent_program -----------------------------------------------------


def test_a_program_is_not_repeated_unless_declared_idempotent(bench: Any) -> None:
    with Session(bench, retry=AT_ONCE) as session:
        inject(bench, "program", DeviceTimeout("no acknowledgement"))
        with pytest.raises(DeviceTimeout, match="not sent again because the spec does not declare idempotent_program"):
            session.program(W)
        assert session.usage.programs == 1


def test_a_query_is_repeated_without_reopening_unless_declared_idempotent(bench: Any) -> None:
    with Session(bench, retry=AT_ONCE) as session:
        session.program(W)
        inject(bench, "query", DeviceTimeout("late"), ProtocolError("garbled"))
        torch.testing.assert_close(session.query(X), X @ W.reshape(3, 4).T)
        assert bench.log == ["open", "program", *COMPARED, "query 5"]
        assert session.usage.retries == 2


def test_lost_controls_are_not_written_again(bench: Any) -> None:
    with Session(bench, retry=AT_ONCE) as session:
        session.program(W)
        inject(bench, "query", NotConnected("gone"))
        with pytest.raises(NotConnected, match="controls may be lost, and are not sent again"):
            session.query(X)
        assert session.usage.programs == 1


# -- devices with capabilities --------------------------------------------------------------


@pytest.mark.parametrize("idempotent", [False, True])
def test_a_device_that_resends_repeats_its_answer_first(
    matrix_device: Any, idempotent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Numbered(matrix_device):
        capabilities = (Resends,)

        def resend(self) -> torch.Tensor | None:
            self.log.append("resend")
            return cast("torch.Tensor | None", self.newest)

    chip = Numbered(idempotent_program=idempotent)
    with Session(chip, retry=AT_ONCE) as session:
        chip.newest = None
        inject(chip, "program", DeviceTimeout("no acknowledgement"))
        session.program(W)
        monkeypatch.setattr(chip, "_is_programmed", True)
        chip.newest = torch.ones(5, 3, dtype=torch.float64)
        inject(chip, "query", ProtocolError("garbled"))
        answer = session.query(X)
        assert torch.equal(answer, torch.ones(5, 3))
        assert chip.log == ["open", "resend", "resend"]
        assert (session.usage.programs, session.usage.vectors, session.usage.retries) == (1, 5, 2)


def test_the_link_is_flushed_before_a_repetition(matrix_device: Any) -> None:
    class Piped(matrix_device):
        capabilities = (Flushes,)

        def flush(self) -> None:
            self.log.append("flush")

    chip = Piped(idempotent_program=True)
    with Session(chip, retry=AT_ONCE) as session:
        session.program(W)
        inject(chip, "query", DeviceTimeout("late"))
        session.query(X)
    reopened = ["flush", "close", "open", "flush", "program"]
    assert chip.log == ["open", "program", *reopened, *COMPARED, "program", "query 5", "close"]


def test_each_chip_of_a_tiled_device_recovers_alone(matrix_device: Any) -> None:
    chips = [matrix_device(idempotent_program=True) for _ in range(2)]
    with Session(TiledDevice(chips, 4, 6)) as session:
        session.program(torch.cat([W, W]))
        inject(chips[1], "query", NotConnected("gone"))
        session.query(X)
        assert session.usage.retries == 1
    assert chips[0].log == ["open", "program", "query 5", "close"]
