"""Use a session as the user of a notebook does, with Ctrl-C, and compare every answer with the law of the chip."""

from __future__ import annotations

import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from astralora.devices import Budget, BudgetExceeded, Session, Usage

from .text_chip import FULL_SCALE

__all__ = ["Interrupter", "Notebook", "Outcome"]

# Answers to different random vectors differ by far more.
_TOLERANCE = 1e-3
_CODES = 4095
# Share of settings at which all answers are zero.
_DARK = 0.03


@dataclass
class Outcome:
    """Count what the user of a session has met.

    Attributes:
        operations: number of operations started.
        answers: number of answers that were returned and compared.
        wrong: descriptions of the answers that do not follow the law.
        interrupted: number of times that Ctrl-C reached the program.
        errors: number of errors of each type that the user has seen.
        over_budget: descriptions of usages above the budget.
        longest: longest operation in seconds, without one timeout for each of its attempts.
        uncounted: operations that the chip has carried out and the session has not counted.
        injected: number of faults that the chip has made.
        blocked: number of threads that did not end.
        close_errors: errors of closing the session.
        left_on: number of times that the chip was not in its safe state after the session was closed.
        recovered: whether an operation has succeeded after the last interruption or fault.
    """

    operations: int = 0
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    interrupted: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    over_budget: list[str] = field(default_factory=list)
    longest: float = 0.0
    uncounted: dict[str, int] = field(default_factory=dict)
    injected: int = 0
    blocked: int = 0
    close_errors: list[str] = field(default_factory=list)
    left_on: int = 0
    recovered: bool = True

    def add(self, other: Outcome) -> None:
        """Add the counts of another user of the same session."""
        self.operations += other.operations
        self.answers += other.answers
        self.wrong += other.wrong
        self.interrupted += other.interrupted
        self.errors += other.errors
        self.over_budget += other.over_budget
        self.longest = max(self.longest, other.longest)

    def compare_counts(self, usage: Usage, carried_out: Mapping[str, int]) -> None:
        """Record the operations that the chip has carried out beyond those that the session has counted."""
        for name in ("programs", "vectors"):
            excess = carried_out.get(name, 0) - getattr(usage, name)
            if excess > 0:
                self.uncounted[name] = excess

    def require_right(self, *, recovers: bool = True, longest: float = 5.0) -> None:
        """Require right answers, kept budgets, true counters, and for most devices that operations succeed again.

        Args:
            recovers: whether an operation must succeed after the last interruption or fault.
            longest: longest operation that is allowed, in seconds, without one timeout for each of its attempts.
        """
        assert not self.wrong, f"{len(self.wrong)} of {self.answers} answers are wrong, the first: {self.wrong[0]}"
        assert not self.over_budget, f"budgets were exceeded {len(self.over_budget)} times: {self.over_budget[0]}"
        assert not self.uncounted, f"the chip has carried out more than the session has counted: {self.uncounted}"
        assert not self.blocked, f"{self.blocked} threads are blocked"
        assert self.longest < longest, f"an operation took {self.longest:.1f} s longer than its timeouts"
        assert self.recovered or not recovers, f"no operation succeeded after the last fault; errors: {self.errors}"

    def require_safe(self) -> None:
        """Require that closing the session has left the chip in its safe state."""
        assert not self.left_on, f"the chip was left on {self.left_on} times; errors: {self.close_errors[:1]}"

    def __str__(self) -> str:
        errors = ", ".join(f"{count} {name}" for name, count in self.errors.most_common()) or "none"
        return (
            f"{self.operations} operations, {self.answers} answers, {len(self.wrong)} wrong, "
            f"{self.interrupted} interruptions, {self.injected} faults, errors: {errors}; "
            f"longest {self.longest:.2f} s, {len(self.over_budget)} over budget, uncounted {self.uncounted or 0}, "
            f"{self.blocked} blocked, {len(self.close_errors)} errors on close, left on {self.left_on}"
        )


# -- Ctrl-C ----------------------------------------------------------------------------------------


class Interrupter:
    """Press Ctrl-C at a random moment of an operation of the main thread.

    Use it as a context manager. The signal is a real SIGINT, which ends system calls of the main thread. Its handler
    raises KeyboardInterrupt only while an operation runs, so that the test itself is not interrupted.
    """

    def __init__(self, seed: int) -> None:
        self.fired = 0
        self._random = random.Random(seed)
        self._armed = False
        self._delays: list[float] = []
        self._wake = threading.Condition()
        self._stopped = False
        self._seconds = 1e-3  # mean duration of an operation

    def __enter__(self) -> Interrupter:
        self._handler = signal.signal(signal.SIGINT, self._press)
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        # KeyboardInterrupt within a destructor cannot be raised; Python reports and drops it.
        self._hook, sys.unraisablehook = sys.unraisablehook, self._drop
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._armed = False
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()
        sys.unraisablehook = self._hook
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        signal.signal(signal.SIGINT, self._handler)

    def carry_out(self, act: Callable[[], Any]) -> Any:
        """Call a function of the session, and interrupt it with a probability of one half."""
        if self._random.random() < 0.5:
            return self._timed(act)
        with self._wake:
            self._delays.append(self._random.uniform(0.0, 1.3 * self._seconds))
            self._wake.notify()
        try:
            self._armed = True
            return act()
        finally:
            self._armed = False

    def _timed(self, act: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        answer = act()
        # A bounded mean, because operations that repeat after a fault are far longer.
        self._seconds += 0.1 * (min(time.perf_counter() - start, 3 * self._seconds) - self._seconds)
        return answer

    def _run(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._delays or self._stopped)
                if self._stopped:
                    return
                delay = self._delays.pop()
                self._delays.clear()
            time.sleep(delay)
            if self._armed:
                signal.pthread_kill(main, signal.SIGINT)

    def _press(self, number: int, frame: object) -> None:
        if self._armed:
            self._armed = False
            self.fired += 1
            raise KeyboardInterrupt

    def _drop(self, report: Any) -> None:
        if not issubclass(report.exc_type, KeyboardInterrupt):
            self._hook(report)


# -- the user --------------------------------------------------------------------------------------


class Notebook:
    """Carry out random operations on a session, and go on after every error.

    Args:
        session: open session on a chip with the law ``y = (V / 5) x``.
        seed: seed of the operations.
        shared: whether other threads use the session too, so that every operation sets its controls.
        timeout: timeout of the driver in seconds, for `Outcome.longest`.
        allowance: largest number of programs of a budget, which is replaced whenever it is exceeded; 0 for no budget.
        rows: largest number of vectors of a query.
    """

    def __init__(
        self,
        session: Session,
        seed: int,
        *,
        shared: bool = False,
        timeout: float = 0.0,
        allowance: int = 30,
        rows: int = 4,
    ) -> None:
        self.outcome = Outcome()
        self._session = session
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._shared = shared
        self._timeout = timeout
        self._allowance = allowance
        self._rows = rows
        # Controls that the chip may have; after an interruption, the user does not know which.
        self._possible: list[Tensor] = []
        self._grant()

    def step(self, carry_out: Callable[[Callable[[], Any]], Any] = lambda act: act()) -> None:
        """Carry out one operation, and compare its answer with the law.

        Args:
            carry_out: function that calls the operation, and may interrupt it.
        """
        count, session = self.outcome, self._session
        count.operations += 1
        act, expected = self._choose()
        start, retries = time.perf_counter(), session.usage.retries
        answer = None
        try:
            answer = carry_out(act)
        except KeyboardInterrupt:
            count.interrupted += 1
        except BudgetExceeded:
            count.errors["BudgetExceeded"] += 1
            self._grant()
        except Exception as error:
            # A vendor's library raises errors of its own.
            count.errors[type(error).__name__] += 1
        if not self._shared:
            attempts = 1 + session.usage.retries - retries
            count.longest = max(count.longest, time.perf_counter() - start - self._timeout * attempts)
        if answer is not None:
            self._compare(answer, expected)
        self._check_budget()

    # -- operations -------------------------------------------------------------------------

    def _choose(self) -> tuple[Callable[[], Any], Callable[[], Tensor]]:
        """Return the next operation, and a function that computes its answer afterwards."""
        session, drawn = self._session, self._random.random()
        inputs = self._inputs()
        if drawn < 0.15:
            settings = self._controls(self._random.randint(1, 4))
            expected = torch.stack([_law(setting, inputs) for setting in settings])
            return lambda: session.query_each(settings, inputs), lambda: expected
        if drawn < 0.4 or self._shared:
            (controls,) = self._controls(1)
            return lambda: session.apply(controls, inputs), lambda: _law(controls, inputs)
        if drawn < 0.6 or not self._possible:
            (controls,) = self._controls(1)
            return lambda: session.program(controls), lambda: torch.empty(0)
        return lambda: session.query(inputs), lambda: _law(self._held(), inputs)

    def _controls(self, settings: int) -> Tensor:
        # Whole codes of a converter with 12 bits, so that rounding changes nothing. Some settings are dark.
        shape = settings, self._session.spec.num_controls
        controls = torch.randint(_CODES + 1, shape, generator=self._generator) * (FULL_SCALE / _CODES)
        controls *= torch.rand(settings, 1, generator=self._generator) > _DARK
        if not self._shared:
            self._possible += controls
        return controls

    def _inputs(self) -> Tensor:
        shape = self._random.randint(1, self._rows), self._session.spec.in_features
        low, high = self._session.spec.input_range or (-1.0, 1.0)
        return torch.empty(shape).uniform_(low, high, generator=self._generator)

    def _held(self) -> Tensor:
        """Return the controls that the session states to be set."""
        held = [controls for controls in self._possible if self._session.holds(controls)]
        self._possible = held or self._possible
        return held[0] if held else torch.full((self._session.spec.num_controls,), torch.nan)

    # -- comparisons ------------------------------------------------------------------------

    def _compare(self, answer: Tensor, expected: Callable[[], Tensor]) -> None:
        right = expected()
        self.outcome.answers += 1
        if answer.shape != right.shape or not torch.allclose(answer, right, rtol=0.0, atol=_TOLERANCE):
            self.outcome.wrong.append(f"operation {self.outcome.operations}: {answer} instead of {right}")

    def _grant(self) -> None:
        """Allow a few more operations, as a user does who raises the budget."""
        if self._allowance:
            with self._session.transaction():
                used = self._session.usage
                programs = self._random.randint(0, self._allowance)
                vectors = self._random.randint(0, 3 * self._allowance)
                self._session.budget = Budget(programs=used.programs + programs, vectors=used.vectors + vectors)

    def _check_budget(self) -> None:
        with self._session.transaction():
            budget, used = self._session.budget, self._session.usage
            excess = None if budget is None else budget.shortfall(used, self._session.spec)
            if excess is not None:
                self.outcome.over_budget.append(excess)
                self._grant()


def _law(controls: Tensor, inputs: Tensor) -> Tensor:
    n = inputs.shape[1]
    return (inputs.double() @ (controls.double().reshape(n, n) / FULL_SCALE).T).float()
