"""Answer queries with scripted answers, for tests without a chip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..capabilities import InProcess
from ..errors import NotConnected
from ..spec import DeviceSpec

__all__ = ["MockDevice"]

Answer = Tensor | Sequence[Any] | Exception | Callable[[Tensor, Tensor], Tensor]


class MockDevice:
    """Answer queries from a script, and record all calls.

    An answer is a tensor or nested list of shape (batch, out_features), an exception to raise, or a function of
    controls and inputs. Answers are used in their order. When all are used, ``otherwise`` answers further queries.

    Args:
        spec: spec of the device; by default a spec without claims, with the sizes given here.
        answers: script of answers to queries.
        otherwise: function of controls and inputs that answers further queries; None refuses them.
        in_features: number n of inputs, if no spec is given.
        out_features: number m of outputs, if no spec is given.
        num_controls: number of controls, if no spec is given; n times m by default.

    Attributes:
        calls: names of all calls in their order: ``"open"``, ``"program"``, ``"query"``, ``"close"``.
        programmed: all controls that were programmed, oldest first.
        queried: all inputs that were passed, oldest first.
    """

    capabilities: ClassVar[tuple[type, ...]] = (InProcess,)

    def __init__(
        self,
        spec: DeviceSpec | None = None,
        answers: Sequence[Answer] = (),
        otherwise: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        in_features: int = 4,
        out_features: int = 3,
        num_controls: int | None = None,
    ) -> None:
        self.spec = spec or DeviceSpec(
            name="mock",
            in_features=in_features,
            out_features=out_features,
            num_controls=num_controls or in_features * out_features,
        )
        self.calls: list[str] = []
        self.programmed: list[Tensor] = []
        self.queried: list[Tensor] = []
        self._answers = list(answers)
        self._otherwise = otherwise
        self._is_open = False
        self._controls: Tensor | None = None

    def answer(self, *answers: Answer) -> None:
        """Add answers to the script."""
        self._answers += answers

    # -- Device -----------------------------------------------------------------------------

    def open(self) -> None:
        """Connect; do nothing when connected already."""
        if not self._is_open:
            self.calls.append("open")
            self._is_open = True

    def close(self) -> None:
        """Disconnect, and discard the controls; do nothing when closed already."""
        if self._is_open:
            self.calls.append("close")
            self._is_open, self._controls = False, None

    def program(self, controls: Tensor) -> None:
        """Record the controls: shape (num_controls,)."""
        self._require(self._is_open, "program", "is closed; call open first")
        self.calls.append("program")
        self._controls = controls.detach().clone()
        self.programmed.append(self._controls)

    def query(self, inputs: Tensor) -> Tensor:
        """Return the next answer of the script: (batch, in_features) -> (batch, out_features)."""
        self._require(self._is_open, "query", "is closed; call open first")
        self._require(self._controls is not None, "query", "no controls are set; call program first")
        assert self._controls is not None
        self.calls.append("query")
        self.queried.append(inputs.detach().clone())
        if self._answers:
            answer = self._answers.pop(0)
        elif self._otherwise is not None:
            answer = self._otherwise
        else:
            raise AssertionError(
                f"query {len(self.queried)} was made, but the script has only {len(self.queried) - 1} answers"
            )
        if isinstance(answer, Exception):
            raise answer
        outputs = answer(self._controls, inputs) if callable(answer) else torch.as_tensor(answer)
        return outputs.to(inputs.dtype)

    # -- assertions -------------------------------------------------------------------------

    def assert_programmed(self, controls: Tensor | Sequence[float], *, atol: float = 0.0) -> None:
        """Fail unless the newest program had these controls, to within ``atol``."""
        assert self.programmed, "nothing was programmed"
        newest, expected = self.programmed[-1], torch.as_tensor(controls).to(self.programmed[-1])
        assert newest.shape == expected.shape, (
            f"{len(newest)} controls were programmed, but shape {tuple(expected.shape)} was expected"
        )
        wrong = (newest - expected).abs() > atol
        first = int(wrong.nonzero()[0, 0]) if wrong.any() else 0
        assert not wrong.any(), (
            f"{int(wrong.sum())} of {len(newest)} programmed controls are wrong, "
            f"the first is control {first}: {newest[first]:.6g} instead of {expected[first]:.6g}"
        )

    def assert_calls(self, *calls: str) -> None:
        """Fail unless exactly these calls were made, in this order."""
        assert self.calls == list(calls), f"calls were {', '.join(self.calls)}; expected were {', '.join(calls)}"

    def assert_exhausted(self) -> None:
        """Fail unless all answers of the script were used."""
        assert not self._answers, f"{len(self._answers)} answers of the script were not used"

    def _require(self, condition: bool, operation: str, otherwise: str) -> None:
        if not condition:
            raise NotConnected(otherwise, device=self.spec.name, operation=operation)
