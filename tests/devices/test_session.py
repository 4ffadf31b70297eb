import logging
import threading
from typing import Any

import pytest
import torch

from astralora.devices import (
    Budget,
    BudgetExceeded,
    Device,
    DeviceError,
    DeviceTimeout,
    Differentiable,
    NotConnected,
    OutOfRange,
    ProgramsMany,
    ProtocolError,
    Purpose,
    Retry,
    Session,
    Usage,
)

W = torch.linspace(-1, 1, 12)
X = torch.linspace(-1, 1, 20).reshape(5, 4)


@pytest.fixture
def session(bench: Any) -> Session:
    session = Session(bench)
    session.open()
    return session


def test_a_session_is_a_device(session: Session) -> None:
    assert isinstance(session, Device)
    with Session(session) as outer:
        assert torch.equal(outer.apply(W, X), session.apply(W, X))


def test_answers_what_the_device_answers(session: Session) -> None:
    torch.testing.assert_close(session.apply(W, X), X @ W.reshape(3, 4).T)


# -- bad input costs nothing -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        (torch.zeros(5, 3), r"shape \(batch, 4\), but have \(5, 3\)"),
        (torch.zeros(4), r"shape \(batch, 4\)"),
        (torch.zeros(2, 4, dtype=torch.int64), "float32 or float64, not torch.int64"),
        (torch.zeros(2, 4, dtype=torch.float16), "float32 or float64"),
        (torch.tensor([[0.0] * 4, [0.0, float("nan"), 0.0, 0.0]]), "NaN or infinity in row 1"),
        (torch.tensor([[float("inf"), 0.0, 0.0, 0.0]]), "NaN or infinity in row 0"),
        (torch.full((1, 4), 1.1), "must stay within -1 to 1"),
        ([[0.0] * 4], "torch tensor, not list"),
    ],
)
def test_refuses_bad_inputs_before_anything_is_spent(session: Session, inputs: Any, complaint: str) -> None:
    session.program(W)
    spent = session.usage
    with pytest.raises(OutOfRange, match=complaint) as error:
        session.query(inputs)
    assert "bench" in str(error.value)
    assert "query" in str(error.value)
    assert session.usage == spent


@pytest.mark.parametrize(
    ("controls", "complaint"),
    [
        (torch.zeros(11), r"shape \(12,\), but have \(11,\)"),
        (torch.zeros(1, 12), r"shape \(12,\)"),
        (torch.full((12,), 2.5), "must stay within -2 to 2 V"),
        (torch.tensor([0.0] * 11 + [float("nan")]), "NaN or infinity at index 11"),
    ],
)
def test_refuses_bad_controls_before_anything_is_spent(session: Session, controls: Any, complaint: str) -> None:
    with pytest.raises(OutOfRange, match=complaint):
        session.program(controls)
    with pytest.raises(OutOfRange, match=complaint):
        session.apply(controls, X)
    assert session.usage == Usage()


def test_accepts_an_excess_of_one_binary_digit(session: Session) -> None:
    session.apply(W, torch.nextafter(torch.ones(1, 4), torch.tensor(2.0)))


def test_refuses_to_work_while_closed(bench: Any) -> None:
    with pytest.raises(NotConnected, match="call open"):
        Session(bench).program(W)


def test_refuses_a_query_before_the_first_program(session: Session) -> None:
    with pytest.raises(NotConnected, match="call program"):
        session.query(X)


def test_refuses_an_object_that_is_not_a_device() -> None:
    thing: Any = object()
    with pytest.raises(TypeError, match="needs spec, open, close, program and query"):
        Session(thing)


# -- programs and batches --------------------------------------------------------------------


def test_skips_a_program_that_changes_nothing(session: Session, bench: Any) -> None:
    session.program(W)
    session.program(W.clone())
    assert bench.log.count("program") == session.usage.programs == 1


def test_notices_controls_changed_in_place(session: Session, bench: Any) -> None:
    controls = W.clone()
    session.program(controls)
    controls[0] += 0.5
    session.program(controls)
    assert bench.log.count("program") == 2


def test_programs_again_after_reopening(session: Session, bench: Any) -> None:
    session.program(W)
    session.close()
    session.open()
    session.program(W)
    assert bench.log == ["open", "program", "close", "open", "program"]


def test_programs_again_after_a_program_failed(session: Session, bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session.program(W)

    def fail(controls: Any) -> None:
        raise DeviceTimeout("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(bench, "_program", fail)
        with pytest.raises(DeviceTimeout, match="device 'bench', program: no answer"):
            session.program(-W)
    session.program(W)
    assert bench.log.count("program") == 2


@pytest.mark.parametrize(("batch", "calls"), [(1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])])
def test_splits_batches_to_max_batch(matrix_device: Any, batch: int, calls: list[int]) -> None:
    device = matrix_device(max_batch=3)
    inputs = X.repeat(2, 1)[:batch]
    with Session(device) as session:
        outputs = session.apply(W, inputs)
    torch.testing.assert_close(outputs, inputs @ W.reshape(3, 4).T)
    assert [entry for entry in device.log if entry.startswith("query")] == [f"query {n}" for n in calls]
    assert (session.usage.queries, session.usage.vectors) == (len(calls), batch)


def test_an_empty_batch_costs_nothing(session: Session) -> None:
    session.program(W)
    assert session.query(X[:0]).shape == (0, 3)
    assert session.usage.queries == 0


def test_query_each_equals_one_after_the_other(session: Session) -> None:
    settings = torch.stack([W, -W, W / 2])
    answers = session.query_each(settings, X)
    torch.testing.assert_close(answers, torch.stack([X @ w.reshape(3, 4).T for w in settings]))
    assert (session.usage.programs, session.usage.vectors) == (3, 15)
    session.program(settings[-1])
    assert session.usage.programs == 3


def test_detaches_tensors_from_autograd(session: Session) -> None:
    outputs = session.apply(W.clone().requires_grad_(), X.clone().requires_grad_())
    assert not outputs.requires_grad


# -- bad answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (torch.zeros(4, 3), r"shape \(4, 3\); it must return shape \(5, 3\)"),
        (torch.full((5, 3), float("nan")), "row 0 of the answer is not finite"),
        (torch.zeros(5, 3, dtype=torch.int32), "floating-point"),
        (None, "NoneType"),
    ],
)
def test_refuses_invalid_answers(session: Session, bench: Any, answer: Any, complaint: str) -> None:
    session.program(W)
    bench.query = lambda inputs: answer
    with pytest.raises(ProtocolError, match=complaint):
        session.query(X)
    assert session.usage.vectors == 5 * (1 + session.usage.retries), "the vectors have been passed, whatever the answer"


@pytest.mark.parametrize("value", [9.9e37, -9.9e37, 9.91e37, 9.9e34, -9.9e31])
@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
def test_an_overload_is_a_fault(matrix_device: Any, value: float, bounds: Any) -> None:
    chip = matrix_device(output_range=bounds)
    with Session(chip, retry=Retry(attempts=2, wait_seconds=0)) as session:
        session.program(W)
        chip.query = lambda inputs: torch.zeros(5, 3).index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(value))
        with pytest.raises(ProtocolError, match=r"row 2 of the answer contains .* report an overload"):
            session.query(X)
        assert session.usage.retries == 1


@pytest.mark.parametrize(
    ("value", "spec", "accepted"),
    [
        (1.0, {}, True),
        (1 + 1e-6, {}, True),
        (1.01, {}, False),
        (-1.01, {}, False),
        (1.01, {"noise_std": 0.002}, True),
        (1.01, {"noise_std": 0.001}, False),
        (1.01, {"output_levels": 65}, True),  # half a step is 0.016
        (1.02, {"output_levels": 65}, False),
    ],
)
def test_an_answer_may_leave_its_range_by_rounding_and_noise_only(
    matrix_device: Any, value: float, spec: Any, accepted: bool
) -> None:
    chip = matrix_device(output_range=(-1.0, 1.0), **spec)
    with Session(chip, retry=Retry(attempts=1)) as session:
        session.program(W)
        chip.query = lambda inputs: torch.zeros(5, 3).index_put((torch.tensor(2), torch.tensor(1)), torch.tensor(value))
        if accepted:
            session.query(X)
        else:
            with pytest.raises(ProtocolError, match=r"row 2 of the answer contains .* outputs from -1 to 1; check"):
                session.query(X)


def test_a_large_answer_may_cancel_another_one_in_the_sum(session: Session, bench: Any) -> None:
    session.program(W)
    bench.query = lambda inputs: torch.tensor([[9.9e37, -9.9e37, 0.0]] * 5)
    with pytest.raises(ProtocolError, match="row 0 of the answer contains"):
        session.query(X)


# -- usage and budget ------------------------------------------------------------------------


def test_counts_every_operation_by_purpose(session: Session) -> None:
    with session.purpose("forward"):
        session.apply(W, X)
    with session.purpose("controls"):
        session.query_each(torch.stack([W / 2, W / 3]), X[:2])
    parts = session.usage_by_purpose
    assert (parts[Purpose.FORWARD].programs, parts[Purpose.FORWARD].queries, parts[Purpose.FORWARD].vectors) == (
        1,
        1,
        5,
    )
    assert (parts[Purpose.CONTROLS].programs, parts[Purpose.CONTROLS].queries, parts[Purpose.CONTROLS].vectors) == (
        2,
        2,
        4,
    )
    assert session.usage == parts[Purpose.FORWARD] + parts[Purpose.CONTROLS]
    assert session.usage.bytes == 4 * (12 + 5 * 4 + 5 * 3) + 4 * (2 * 12 + 2 * (2 * 4 + 2 * 3))
    assert session.usage.seconds > 0


def test_prices_usage_at_the_spec_rates(session: Session) -> None:
    session.apply(W, X)
    assert session.usage.hardware_seconds(session.spec) == pytest.approx(0.5 + 5 * 0.001)


@pytest.mark.parametrize(
    ("budget", "complaint"),
    [
        (Budget(programs=1), "2 programs of a budget of 1"),
        (Budget(vectors=9), "10 vectors of a budget of 9"),
        (Budget(queries=1), "2 queries of a budget of 1"),
        (Budget(hardware_seconds=1.0), "1.01 hardware seconds of a budget of 1"),
    ],
)
def test_refuses_before_the_budget_is_exceeded(bench: Any, budget: Budget, complaint: str) -> None:
    with Session(bench, budget=budget) as session:
        session.apply(W, X)
        spent = session.usage
        with pytest.raises(BudgetExceeded, match=complaint):
            session.apply(-W, X)
        assert session.usage == spent
        assert bench.log == ["open", "program", "query 5"]


def test_a_budget_can_be_spent_completely(bench: Any) -> None:
    with Session(bench, budget=Budget(programs=2, vectors=10, queries=2, hardware_seconds=1.01)) as session:
        session.apply(W, X)
        session.apply(-W, X)
        assert session.usage.vectors == 10


def test_a_split_batch_is_refused_as_a_whole(matrix_device: Any) -> None:
    device = matrix_device(max_batch=2)
    with Session(device, budget=Budget(vectors=4)) as session:
        session.program(W)
        with pytest.raises(BudgetExceeded):
            session.query(X)
        assert session.usage.vectors == 0


# -- threads ---------------------------------------------------------------------------------


def test_no_thread_gets_between_a_program_and_its_query(session: Session) -> None:
    ready = threading.Barrier(4)
    wrong: list[float] = []

    def work(value: float) -> None:
        controls = torch.full((12,), value)
        ready.wait()
        for _ in range(100):
            outputs = session.apply(controls, torch.ones(1, 4))
            if not torch.allclose(outputs, torch.full((1, 3), 4 * value)):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in (0.25, 0.5, 0.75, 1.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert session.usage.vectors == 400


def test_purposes_of_two_threads_are_kept_apart(session: Session) -> None:
    session.program(W)
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        inside.wait()
        with session.purpose("controls"):
            session.query(X[:1])
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with session.purpose("forward"):
        inside.set()
        done.wait()
        session.query(X[:2])
    thread.join()
    assert session.usage_by_purpose[Purpose.CONTROLS].vectors == 1
    assert session.usage_by_purpose[Purpose.FORWARD].vectors == 2


# -- the rest --------------------------------------------------------------------------------


def test_logs_its_traffic(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="astralora.devices.exchange"), session.purpose("forward"):
        session.apply(W, X)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "bench program for forward",
        "bench query for forward",
    ]


def test_names_device_and_operation_in_the_errors_of_a_driver(
    session: Session, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(inputs: Any) -> Any:
        raise DeviceError("the lamp is out; replace it")

    session.program(W)
    monkeypatch.setattr(bench, "_query", fail)
    with pytest.raises(DeviceError, match="device 'bench', query: the lamp is out; replace it"):
        session.query(X)


def test_finds_capabilities_of_the_device(session: Session, simulated: Any) -> None:
    assert session.capability(Differentiable) is None
    chip = simulated("slm", 4, 3)
    assert Session(chip).capability(Differentiable) is chip.device


def test_finds_capabilities_that_a_wrapper_forwards(bench: Any) -> None:
    class Wrapper:
        spec, open, close, program, query = bench.spec, bench.open, bench.close, bench.program, bench.query

        def capability(self, protocol: Any) -> Any:
            return "the chip's" if protocol is Differentiable else None

    found: Any = Session(Session(Wrapper())).capability(Differentiable)
    assert found == "the chip's"
    assert Session(Wrapper()).capability(ProgramsMany) is None


def test_forget_makes_the_next_program_be_sent(bench: Any) -> None:
    outer = Session(Session(bench))
    outer.open()
    assert not outer.holds(W)
    outer.program(W)
    assert outer.holds(W.clone())
    outer.forget()
    assert not outer.holds(W)
    outer.program(W)
    assert bench.log.count("program") == 2


def test_changing_controls_after_program_does_not_reach_the_driver(
    session: Session, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_program", lambda controls: setattr(bench, "weights", controls.reshape(3, 4)))
    controls = W.clone()
    session.program(controls)
    controls += 1  # as an optimizer does
    torch.testing.assert_close(session.query(X), X @ W.reshape(3, 4).T)


def test_restoring_resets_the_programmed_controls_of_an_inner_session(simulated: Any) -> None:
    outer = Session(simulated("matvec", 4, 3))
    outer.open()
    outer.program(W)
    state = outer.state_dict()
    outer.program(-W)
    outer.load_state_dict(state)
    torch.testing.assert_close(outer.apply(-W, X), -X @ W.reshape(3, 4).T)


def test_usage_continues_from_a_saved_state(session: Session, matrix_device: Any) -> None:
    session.apply(W, X)
    with Session(matrix_device()) as other:
        assert other.load_state_dict(session.state_dict()) is False, "this driver cannot restore its state"
        other.apply(W, X)
        assert (other.usage.programs, other.usage.vectors) == (2, 10)
        other.load_state_dict(session.state_dict())
        assert (other.usage.programs, other.usage.vectors) == (3, 15), "operations of a real chip are never undone"
