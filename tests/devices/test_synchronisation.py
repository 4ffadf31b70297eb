"""Test a session on a device without request numbers, whose exchanges break off."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from astralora.devices import (
    Budget,
    BudgetExceeded,
    DeviceError,
    DeviceSpec,
    DeviceTimeout,
    Flushes,
    HardwareDevice,
    InProcess,
    ProtocolError,
    Resends,
    Retry,
    Session,
)

AT_ONCE = Retry(attempts=3, wait_seconds=0)
ONCE = Retry(attempts=1)


class Pipe(HardwareDevice):
    """Drive an instrument that answers in the order of the requests, one vector at a time: y = gain * W x + noise.

    Args:
        clears: whether opening the instrument discards the answers that were not read.
        acknowledges: whether the instrument answers a program.
        noise: standard deviation of the answers.
    """

    def __init__(
        self, *, clears: bool = True, acknowledges: bool = True, noise: float = 0.0, outputs: int = 3, **spec: Any
    ) -> None:
        options: dict[str, Any] = {"idempotent_program": True, "input_range": (-1.0, 1.0), **spec}
        super().__init__(
            DeviceSpec(name="pipe", in_features=4, out_features=outputs, num_controls=4 * outputs, **options)
        )
        self.unread: deque[Any] = deque()
        self.weights = np.zeros((outputs, 4))
        self.gain = 1.0
        self.opened = self.programs = self.vectors = 0
        self.breaks: list[BaseException | None] = []
        self._clears, self._acknowledges, self._noise = clears, acknowledges, noise
        self.random = np.random.default_rng(0)

    def break_off(self, *errors: BaseException | None) -> None:
        """Raise these errors in the next requests, after the instrument has received them; None lets one pass."""
        self.breaks += errors

    def expected(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ torch.tensor(self.weights, dtype=inputs.dtype).T * self.gain

    def _open(self) -> None:
        self.opened += 1
        if self._clears:
            self.unread.clear()

    def _close(self) -> None:
        pass

    def _program(self, controls: NDArray[Any]) -> None:
        self.programs += 1
        self.weights = np.array(controls, dtype=float).reshape(self.weights.shape)
        if self._acknowledges:
            self.unread.append("OK")
            answer = self._read()
            if not isinstance(answer, str):
                raise ProtocolError(f"{answer} is no acknowledgement")
        else:
            self._raise()

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        return np.array([self._pass(vector) for vector in inputs])

    def _pass(self, vector: NDArray[Any]) -> NDArray[Any]:
        self.vectors += 1
        noise = self._noise * self.random.standard_normal(len(self.weights))
        self.unread.append(self.gain * self.weights @ vector + noise)
        answer = self._read()
        return np.array([float(word) for word in answer])

    def _read(self) -> Any:
        self._raise()
        return self.unread.popleft()

    def _raise(self) -> None:
        error = self.breaks.pop(0) if self.breaks else None
        if error is not None:
            raise error


class FlushedPipe(Pipe):
    """Drive the same instrument over a line that can be flushed."""

    capabilities = (Flushes,)

    def flush(self) -> None:
        self.unread.clear()


def vectors(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def controls(seed: int, outputs: int = 3) -> torch.Tensor:
    return torch.rand(4 * outputs, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def use(session: Session, chip: Pipe, operations: int = 12, *, atol: float = 1e-5) -> None:
    """Program and query as a user does who goes on after an error, and compare every answer."""
    for number in range(operations):
        if number % 4 == 3 or session.usage.programs == 0:
            session.program(controls(100 + number, chip.spec.out_features))
        inputs = vectors(number, 1 + number % 3)
        torch.testing.assert_close(session.query(inputs), chip.expected(inputs), rtol=0, atol=atol)


BROKEN = [DeviceTimeout("late"), ProtocolError("garbled"), KeyboardInterrupt(), ValueError("a bug in the driver")]


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("kind", [Pipe, FlushedPipe])
@pytest.mark.parametrize("retry", [ONCE, AT_ONCE], ids=["once", "repeated"])
@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", [0, 2], ids=["the only vector", "within a batch"])
def test_answers_belong_to_their_vectors_after_a_broken_query(
    kind: type[Pipe], idempotent: bool, retry: Retry, error: BaseException, place: int
) -> None:
    chip = kind(idempotent_program=idempotent)
    session = Session(chip, retry=retry)
    with session:
        use(session, chip)
        chip.break_off(*[None] * place, error)
        try:
            inputs = vectors(50, 4)
            assert torch.allclose(session.query(inputs), chip.expected(inputs))
        except (DeviceError, KeyboardInterrupt, ValueError):
            pass
        if not idempotent and kind is Pipe:
            # Neither flushing nor reopening is allowed, so the late answer stays in the line.
            with pytest.raises(ProtocolError, match="do not belong to the vectors"):
                session.query(vectors(51))
            return
        use(session, chip)


@pytest.mark.parametrize("acknowledges", [True, False])
@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("kind", [Pipe, FlushedPipe])
@pytest.mark.parametrize("error", BROKEN, ids=lambda error: type(error).__name__)
def test_answers_belong_to_their_vectors_after_a_broken_program(
    kind: type[Pipe], idempotent: bool, acknowledges: bool, error: BaseException
) -> None:
    chip = kind(idempotent_program=idempotent, acknowledges=acknowledges)
    with Session(chip, retry=ONCE) as session:
        use(session, chip)
        chip.break_off(error)
        with pytest.raises(type(error)):
            session.program(controls(60))
        session.program(controls(61))
        use(session, chip)


def test_a_known_answer_costs_one_program_and_one_vector() -> None:
    chip = FlushedPipe()
    with Session(chip, retry=ONCE) as session:
        session.program(controls(0))
        session.query(vectors(0, 2))
        chip.break_off(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.query(vectors(1))
        before = session.usage
        session.query(vectors(2))
        spent = session.usage - before
    assert (spent.programs, spent.queries, spent.vectors) == (1, 2, 2)
    assert (chip.programs, chip.vectors) == (session.usage.programs, session.usage.vectors)


def test_seven_vectors_are_compared_if_no_answer_is_known() -> None:
    chip = FlushedPipe()
    with Session(chip, retry=ONCE) as session:
        session.program(controls(0))
        chip.break_off(DeviceTimeout("late"))
        with pytest.raises(DeviceTimeout):
            session.query(vectors(1))
        before = session.usage
        use(session, chip, 1)
        spent = session.usage - before
    assert (spent.programs, spent.vectors) == (2, 8), "the program before the comparison is repeated"


def test_the_controls_of_the_known_answer_are_replaced_by_the_present_ones() -> None:
    chip = FlushedPipe()
    with Session(chip, retry=ONCE) as session:
        session.apply(controls(0), vectors(0, 2))
        session.program(controls(1))
        chip.break_off(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.query(vectors(1))
        assert torch.allclose(session.query(vectors(2)), vectors(2) @ controls(1).view(3, 4).T)


@pytest.mark.parametrize("late", [1, 2, 3, 4, 7])
def test_late_answers_that_no_reopening_discards_are_never_returned(late: int) -> None:
    chip = Pipe(clears=False)
    with Session(chip, retry=AT_ONCE) as session:
        use(session, chip)
        chip.unread.extend(np.ones(3) * place for place in range(late - 1))
        chip.break_off(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.query(vectors(50))
        for number in range(3):
            with pytest.raises(ProtocolError, match=r"close and open the session|is no acknowledgement|failed with"):
                session.query(vectors(51 + number))


def test_the_known_vector_is_not_asked_if_its_own_answer_may_be_late() -> None:
    # An instrument whose late answer only shows in the second answer: the answer to the same vector comes twice.
    chip = Pipe(clears=False, acknowledges=False)
    same = vectors(0, 2)
    with Session(chip, retry=ONCE) as session:
        session.apply(controls(0), same)
        chip.break_off(None, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.query(same)
        with pytest.raises(ProtocolError, match="do not belong"):
            session.query(vectors(1))


def test_a_chip_whose_answers_are_all_equal_is_verified_as_soon_as_they_differ() -> None:
    chip = Pipe(clears=False, acknowledges=False)
    with Session(chip, retry=ONCE) as session:
        session.program(torch.zeros(12))
        chip.break_off(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.query(vectors(0))
        assert not session.query(vectors(1)).any(), "the late answer is equal to the right one"
        session.program(controls(1))
        with pytest.raises(ProtocolError, match="do not belong"):
            session.query(vectors(2))


@pytest.mark.parametrize("claimed", [0.05, 0.0], ids=["claimed", "not claimed"])
@pytest.mark.parametrize("seed", range(20))
def test_noise_does_not_prevent_the_verdict(claimed: float, seed: int) -> None:
    chip = FlushedPipe(noise=0.05, noise_std=claimed, outputs=8)
    chip.random = np.random.default_rng(seed)
    with Session(chip, retry=ONCE) as session:
        session.apply(controls(seed, 8), vectors(seed, 2))
        for number in range(5):
            chip.break_off(KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                session.query(vectors(number))
            # The largest of 24 values exceeds 6 standard deviations with a probability of 5e-8.
            use(session, chip, 3, atol=6 * 0.05)


def test_a_chip_that_has_drifted_is_in_step() -> None:
    chip = FlushedPipe()
    with Session(chip, retry=ONCE) as session:
        session.apply(controls(0), vectors(0, 2))
        chip.break_off(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.query(vectors(1))
        chip.gain = 0.9
        use(session, chip, 3)


def test_answers_with_few_bits_are_compared() -> None:
    # One bit for each of three outputs: a late answer equals the known one in every eighth case.
    class Bits(FlushedPipe):
        def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
            return np.array(np.sign(super()._query(inputs)))

    chip = Bits(output_range=(-1.0, 1.0), output_levels=2)
    with Session(chip, retry=ONCE) as session:
        session.apply(controls(0), torch.cat([vectors(0), -vectors(0)]))
        chip.break_off(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.query(vectors(1))
        before = session.usage.vectors
        session.query(vectors(2))
        assert session.usage.vectors - before >= 8, "a comparison takes seven vectors, a known answer one"


def test_an_interrupted_restoration_is_repeated() -> None:
    chip = FlushedPipe()
    with Session(chip, retry=ONCE) as session:
        use(session, chip)
        for place in range(6):
            chip.break_off(KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                session.query(vectors(50))
            chip.break_off(*[None] * place, KeyboardInterrupt())
            try:
                session.query(vectors(51))
                chip.breaks.clear()
            except KeyboardInterrupt:
                pass
            use(session, chip)


def test_the_restoration_stays_within_the_budget() -> None:
    chip = FlushedPipe()
    with Session(chip, Budget(vectors=3), retry=AT_ONCE) as session:
        session.apply(controls(0), vectors(0, 2))
        session.budget = Budget(vectors=4)
        chip.break_off(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.query(vectors(1))
        with pytest.raises(BudgetExceeded, match="5 vectors of a budget of 4"):
            session.query(vectors(2))
        assert chip.vectors == session.usage.vectors == 3
        session.budget = None
        use(session, chip)


@pytest.mark.parametrize("capability", [Resends, InProcess])
def test_a_device_that_cannot_answer_late_is_not_asked(capability: type) -> None:
    class Sure(Pipe):
        capabilities = (capability,)

        def resend(self) -> None:
            raise DeviceTimeout("still late")

    chip = Sure()
    with Session(chip, retry=ONCE) as session:
        session.apply(controls(0), vectors(0, 2))
        chip.break_off(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.query(vectors(1))
        chip.unread.clear()
        before = session.usage
        use(session, chip, 1)
        assert (session.usage - before).vectors == 1
        assert chip.opened == 1


def test_the_device_stays_in_doubt_if_the_budget_refuses_the_program_after_the_comparison() -> None:
    chip = FlushedPipe(acknowledges=False)
    with Session(chip, retry=ONCE) as session:
        chip.break_off(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            session.program(controls(0))
        session.program(controls(1))
        session.budget = Budget(programs=chip.programs)
        for _ in range(2):
            with pytest.raises(BudgetExceeded, match="programs of a budget of"):
                session.query(vectors(0))
        session.budget = None
        use(session, chip, 3)
