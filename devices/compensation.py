"""Undoing drift while a chip is only used, not trained."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, inf
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .clock import clock_of
from .device import Device
from .errors import DeviceError, NotConnected
from .random import derive_generator
from .rehearsal import rehearse
from .session import Session
from .spec import DeviceSpec
from .usage import Usage

__all__ = ["CompensatedDevice", "Compensation"]

Compensation = Literal["global", "output", "columns"]
"""One factor for all outputs, one for each, or one that extra columns of the chip tell along with every answer."""

# References are asked so many times right after a program: what they say then is divided by for long.
_FIRST_REPEATS = 4
# How far gains are expected to come apart, as a share: of outputs from each other, and of all from one look to the
# next. It pulls what is near its own noise to what is known better.
_APART = 0.1
# Gains below this are those of dead channels; they are left alone.
_DEAD = 0.05


class CompensatedDevice:
    """Scales a chip's outputs back to what they were right after its program.

    What each kind costs, besides the operations themselves:

    ==========  =========================  ===========================================  ================  =============
    kind        vectors after a program    vectors while it is used                     outputs           undoes
    ==========  =========================  ===========================================  ================  =============
    "global"    4 ``vectors``              ``vectors``, with the first query after      none              the mean drift
                                           every ``every_seconds``
    "output"    the same                   the same                                     none              each output's
    "columns"   2 ``in_features``          none                                         ``columns``       the mean drift
    ==========  =========================  ===========================================  ================  =============

    ``"global"`` and ``"output"`` ask reference vectors right after every program, and again later; the outputs are
    divided by what is left of the answers: of all together (Joshi et al., Nat. Commun. 11, 2473 (2020)), or of each
    output, the latter pulled to the former where an output's own reference is near its noise.

    ``"columns"`` gives up the last ``columns`` outputs of the chip. Their controls are fixed for good, and right after
    every program their transfer is measured; from then on they answer along with every query, and the other outputs
    are divided by what is left of those answers. So it is never older than the query, but it foresees from a few
    outputs what has become of all others, and it can do that only as well as their controls drift alike.

    No kind undoes what has moved by different amounts within one output, an offset, or noise, which grows with the
    factor. Every program pays for its references: this is for a chip that is used, not for one that is trained.

    The references are booked under the purpose "drift" in `session`; a session around this books them with whatever
    it was doing, and its budget covers them before they are sent.

    Args:
        device: a linear chip.
        kind: how.
        every_seconds: time from one look at the references to the next, on the device's clock; see `devices.clock_of`.
        vectors: references.
        columns: outputs given up.
        seed: of references.

    Attributes:
        spec: the chip's; with ``"columns"``, without the outputs that are given up and their controls.
        factor: what the newest outputs were multiplied by, one number or (out_features,).

    Raises:
        DeviceError: the chip is not linear; or, for ``"columns"``, its outputs do not have controls of their own.
    """

    def __init__(
        self,
        device: Device,
        kind: Compensation = "output",
        *,
        every_seconds: float = 60.0,
        vectors: int = 16,
        columns: int = 4,
        seed: int = 0,
    ) -> None:
        self.session = device if isinstance(device, Session) else Session(device)
        self.kind = kind
        self.every_seconds = every_seconds
        spec = self.session.spec
        self._check(spec, columns, vectors)
        self._columns = columns if kind == "columns" else 0
        self._vectors = vectors
        self._seed = seed
        self._clock = clock_of(self.session)
        self._references = _signs(spec, 2 * spec.in_features if self._columns else vectors, seed)
        self._fixed = _reference_controls(spec, self._columns, seed)
        self._first: Tensor | None = None  # answers to the references, or rows of the columns, right after the program
        self._variance = 0.0  # of one output of one answer
        self._common = 1.0  # what was left of all outputs together at the newest look
        self._seen_at = 0.0
        self.factor: Tensor = torch.ones(())
        self.spec = self._without_columns(spec)

    def open(self) -> None:
        """Connect."""
        self.session.open()

    def close(self) -> None:
        """Leave the chip in its safe state and disconnect."""
        self.session.close()
        self._first = None

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,), and look at the references.

        Does nothing where the chip holds exactly these: they go on fading from when they were written.
        """
        whole = torch.cat([controls, self._fixed.to(controls)]) if self._columns else controls
        if self._first is not None and self.session._holds(whole):
            return
        self._first = None
        repeats = self._repeats
        # Before the program is paid for.
        self.session.afford("program", programs=1, batches=(repeats * len(self._references),), first=whole)
        self.session.program(whole)
        with self.session.purpose("drift"):
            answers = self.session.query(self._references.to(controls).repeat(repeats, 1))
        if self._columns:
            inputs, outputs = self._references.to(answers).double(), answers[:, -self._columns :].double()
            rows = torch.linalg.lstsq(inputs, outputs).solution
            spread = (outputs - inputs @ rows).square().sum() / max(outputs.numel() - rows.numel(), 1)
            self._first = rows.mT.to(controls)
        else:
            repeated = answers.unflatten(0, (repeats, -1))
            spread = repeated.var(dim=0).mean()
            self._first = repeated.mean(dim=0)
        # A chip need not say how noisy it is; and where noise does not reach the next code, rounding is what is left.
        rounding = (self.session.spec.output_step or 0.0) ** 2 / 12
        self._variance = max(float(spread), self.session.spec.noise_std**2) + rounding
        self._seen_at = self._clock.clock_seconds
        self._common = 1.0
        self.factor = torch.ones(())

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through, (batch, in_features) -> (batch, out_features), and undo the drift.

        Raises:
            BudgetExceeded: before the references are sent, also where it is the query itself that is too much.
            NotConnected: nothing has been programmed.
        """
        if self._first is None:
            raise NotConnected("no controls are set; call program first", device=self.spec.name, operation="query")
        if self._columns:
            answers = self.session.query(inputs)
            self._look(answers[:, -self._columns :], inputs @ self._first.to(inputs).mT)
            return answers[:, : -self._columns] * self.factor.to(answers)
        if self._clock.clock_seconds - self._seen_at >= self.every_seconds:
            self.session.afford("query", batches=(len(self._references), len(inputs)))
            with self.session.purpose("drift"):
                self._look(self.session.query(self._references.to(inputs)), self._first)
            self._seen_at = self._clock.clock_seconds
        return self.session.query(inputs) * self.factor.to(inputs)

    @property
    def clock_seconds(self) -> float:
        """Time at present, on the chip's clock; see `devices.Clock`."""
        return self._clock.clock_seconds

    def wait(self, seconds: float) -> None:
        """Let time go by on the chip's clock."""
        self._clock.wait(seconds)

    @property
    def usage(self) -> Usage:
        """What the chip has been asked for, references included."""
        return self.session.usage

    def price(self, usage: Usage) -> Usage:
        """The most that operations come to on the chip: references after every program, and with every query."""
        count = len(self._references)
        first = self._repeats * count
        looks = 0 if self._columns else usage.queries
        return Usage(
            programs=usage.programs,
            queries=usage.queries + usage.programs * self._calls(first) + looks * self._calls(count),
            vectors=usage.vectors + usage.programs * first + looks * count,
        )

    def rehearsal(self) -> Device:
        """The same on a stand-in of the chip, so that references after every program are counted."""
        return CompensatedDevice(
            rehearse(self.session),
            self.kind,
            every_seconds=inf,  # how long the real one will take is not rehearsed
            vectors=self._vectors,
            columns=self._columns,
            seed=self._seed,
        )

    def state_dict(self) -> dict[str, Any]:
        """The chip's inner state where it can be saved, and what the references said."""
        return {
            "session": self.session.state_dict(),
            "first": self._first,
            "variance": self._variance,
            "common": self._common,
            # An age and not a time: clocks start anew with a process.
            "age_seconds": self._clock.clock_seconds - self._seen_at,
            "factor": self.factor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Put back what `state_dict` returned; False where the chip could not be, which then needs a new program."""
        restored = self.session.load_state_dict(state["session"])
        self._first = state["first"] if restored else None
        self._variance, self._common, self.factor = state["variance"], state["common"], state["factor"]
        self._seen_at = self._clock.clock_seconds - state["age_seconds"]
        return restored

    @property
    def _repeats(self) -> int:
        return 1 if self._columns else _FIRST_REPEATS

    def _calls(self, vectors: int) -> int:
        return ceil(vectors / (self.spec.max_batch or vectors))

    def _look(self, answers: Tensor, first: Tensor) -> None:
        """Take the factor anew, from what references answer now and answered first, (vectors, outputs) each.

        Least squares of y = g y_0, with g known beforehand to be within `_APART` of the last one; each output's own g,
        of that of all.
        """
        answers, first = answers.double(), first.double()
        along, power = (answers * first).sum(dim=0), first.square().sum(dim=0)
        if not float(power.sum()) > 0:
            return  # nothing to go by
        pull = self._variance / _APART**2
        common = (along.sum() + pull * self._common) / (power.sum() + pull)
        gain = common
        if self.kind == "output":
            pull += 1e-12 * float(power.mean())  # outputs that are dark on a chip without noise
            gain = (along + pull * common) / (power + pull)
        self._common = float(common)
        self.factor = torch.where(gain > _DEAD, 1 / gain, 1.0)

    def _check(self, spec: DeviceSpec, columns: int, vectors: int) -> None:
        kinds = get_args(Compensation)
        reason = None
        if self.kind not in kinds:
            reason = f"there is no compensation {self.kind!r}; known are {', '.join(kinds)}"
        elif not spec.linear:
            reason = "is not linear: no factor undoes its drift"
        elif self.kind != "columns":
            reason = None if vectors >= 1 else "compensation needs a reference vector at least"
        elif spec.coupling != "elementwise" or not 0 < columns < spec.out_features:
            reason = (
                f"columns can be given up where every matrix entry has a control of its own, one at least and fewer "
                f"than the {spec.out_features} outputs that there are; use 'output'"
            )
        if reason is not None:
            raise DeviceError(reason, device=spec.name, operation="compensate")

    def _without_columns(self, spec: DeviceSpec) -> DeviceSpec:
        if not self._columns:
            return spec
        left = spec.out_features - self._columns
        return spec.model_copy(update={"out_features": left, "num_controls": left * spec.in_features})


def _signs(spec: DeviceSpec, count: int, seed: int) -> Tensor:
    """Random vectors at the ends of the input range: (count, in_features)."""
    generator = derive_generator(seed, "references")
    low, high = spec.input_range or (-1.0, 1.0)
    low = max(low, -high) if low < 0 else low
    bits = torch.randint(0, 2, (count, spec.in_features), generator=generator).float()
    # Half of what is legal: a detector at its end would not show that it gets less light.
    return ((low + (high - low) * bits) / 2).clamp_min(low)


def _reference_controls(spec: DeviceSpec, columns: int, seed: int) -> Tensor:
    generator = derive_generator(seed, "reference columns")
    low, high = spec.control_range or (-1.0, 1.0)
    return low + (high - low) * torch.rand(columns * spec.in_features, generator=generator)
