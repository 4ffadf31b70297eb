"""Undoing drift while a chip is only used, not trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import hypot, inf, isfinite, sqrt
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from ..calibration import Thermometer
from ..checks import check_controls, check_inputs
from ..clock import Clock, WallClock, clock_of
from ..device import Device, ReportsPeaks
from ..errors import DeviceError, NotConnected
from .references import DEAD, References, Rows, reference_controls
from ..registry import make_inner
from .rehearsal import rehearse
from ..session import Session
from ..spec import DeviceSpec
from ..usage import Usage

__all__ = ["CompensatedDevice", "Compensation", "CompensationWarning", "make_compensated"]

Compensation = Literal["global", "output", "columns"]
"""One factor for all outputs, one for each, or one that extra columns of the chip tell along with every answer."""

_Capability = TypeVar("_Capability")

# What is as true of the chip behind the compensation: nothing that tells of its answers.
_SAME: tuple[type, ...] = (Clock, Thermometer, ReportsPeaks)


class CompensationWarning(UserWarning):
    """Drift is not undone: noise hides it, or next to nothing is left of the outputs."""


class CompensatedDevice:
    """Scales a chip's outputs back to what they were right after its program.

    What each kind costs, besides the operations themselves:

    ==========  =====================  ==========================================  ===========  ===================
    kind        vectors a program      vectors while it is used                    outputs      undoes the drift of
    ==========  =====================  ==========================================  ===========  ===================
    "global"    4 ``vectors``          ``vectors``, with the first query after     none         all outputs' mean
                                       every ``every_seconds``
    "output"    the same               the same                                    none         every output
    "columns"   1 to 2 an input        none                                        ``columns``  the columns' mean
    ==========  =====================  ==========================================  ===========  ===================

    ``"global"`` and ``"output"`` ask reference vectors right after every program, and again later; the outputs are
    divided by what is left of the answers: of all together (Joshi et al., Nat. Commun. 11, 2473 (2020)), or of each
    output, the latter pulled to the former where an output's own references are near their noise.

    ``"columns"`` gives up the last ``columns`` outputs of the chip. Their controls are fixed for good, and their rows
    of the transfer matrix are measured right after every program; from then on they answer along with every query,
    and the other outputs are divided by what is left of those answers. So it needs no vector and no pause, but takes
    what has become of a few outputs for what has become of all: as true as their controls drift alike.

    No kind undoes what has moved by different amounts within one output, nor an offset, nor noise, which grows with the
    factor. References go by the chip's clock, see `astralora.devices.clock_of`, and are booked under the purpose "drift" in
    `session`. Every program pays for them: this is for a chip that is used, not for one that is trained. Programming
    what the chip holds already changes nothing, and it goes on ageing.

    Args:
        device: a linear chip; one that is guarded by a session already keeps it.
        kind: how.
        every_seconds: from one look at the references to the next; of ``"columns"``, how long earlier answers count
            beside the newest.
        vectors: references, of ``"global"`` and ``"output"``; 2 at least.
        columns: outputs given up, of ``"columns"``.
        seed: of references.

    Attributes:
        session: the guarded chip.
        spec: the chip's; with ``"columns"``, without the outputs that are given up and their controls. Outputs stay
            within its range, but are no codes of the chip's converter any more.
        factor: what the newest outputs were multiplied by, () or (out_features,).

    Raises:
        DeviceError: the chip is not linear, or has no columns to give up, or an argument is out of range.
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
        chip = self.session.spec
        reason = _objection(chip, kind, every_seconds, vectors, columns)
        if reason is not None:
            raise DeviceError(reason, device=chip.name, operation="compensate")
        self.kind = kind
        self.every_seconds = every_seconds
        self._options = {"every_seconds": every_seconds, "vectors": vectors, "columns": columns, "seed": seed}
        self._columns = columns if kind == "columns" else 0
        self._fixed = reference_controls(chip, self._columns, seed)
        self._references = References(chip, vectors, seed)
        self._rows = Rows(chip, columns, seed, every_seconds) if self._columns else None
        self._clock = clock_of(self.session)
        self._known = False  # whether what references said belongs to what the chip holds
        self._tells = True
        self._seen_at = 0.0
        self.factor: Tensor = torch.ones(())
        self.spec = _compensated(chip, self._columns)

    # -- Device -----------------------------------------------------------------------------

    def open(self) -> None:
        """Connect."""
        self.session.open()

    def close(self) -> None:
        """Leave the chip in its safe state and disconnect."""
        with self.session.transaction():
            self._known = False
            self.session.close()

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,), and ask the references; does nothing where the chip holds these already.

        Raises:
            OutOfRange, BudgetExceeded, NotConnected: before anything is sent; the budget has to cover both.
        """
        check_controls(self.spec, controls, "program")
        whole = torch.cat([controls.detach(), self._fixed.to(controls)]) if self._columns else controls
        watch = self._rows or self._references
        with self.session.transaction():
            if self._known and self.session.holds(whole):
                return
            self.session.afford("program", programs=1, batches=(len(watch.at_program),), first=whole)
            self._known = False
            try:
                self.session.program(whole)
                with self.session.purpose("drift"):
                    self._tells = watch.begin(self.session.query(watch.at_program.to(controls)))
            except BaseException:
                # Else the same controls would not be written again, and be compared with a chip that has aged.
                self.session.forget()
                raise
            self._known = True
            self._as_programmed()
        if not self._tells:
            self._warn("the references' answers are hardly more than noise, and tell nothing of drift; ask for more")

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through, (batch, in_features) -> (batch, out_features), and undo the drift.

        Raises:
            OutOfRange, BudgetExceeded, NotConnected: before anything is sent, references included.
        """
        with self.session.transaction():
            if not self._known:
                raise NotConnected("no controls are set; call program first", device=self.spec.name, operation="query")
            check_inputs(self.spec, inputs, "query")
            if not len(inputs):
                return inputs.new_empty(0, self.spec.out_features)
            due = self._rows is None and self._tells and self._age() >= self.every_seconds
            references = (len(self._references.vectors),) if due else ()
            self.session.afford("query", batches=(*references, len(inputs)))
            if due:
                self._look(inputs)
            # In the pieces that the chip takes, so that it is known of each which factor belongs to it.
            return torch.cat([self._asked(part) for part in inputs.split(self.spec.max_batch or len(inputs))])

    # -- Composite, Rehearses, Clock --------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """What the chip has been asked for, references included."""
        return self.session.usage

    def price(self, usage: Usage) -> Usage:
        """The most that operations come to on the chip: references after every program, and with every query."""
        first = len((self._rows or self._references).at_program)
        looks, count = (0, 0) if self._columns else (usage.queries, len(self._references.vectors))
        return self.session.price(
            Usage(
                programs=usage.programs,
                queries=usage.queries
                + usage.programs * self.spec.queries_for(first)
                + looks * self.spec.queries_for(count),
                vectors=usage.vectors + usage.programs * first + looks * count,
            )
        )

    def rehearsal(self) -> Device:
        """The same on a stand-in of the chip, so that references are counted, by the time that hardware would take."""
        return CompensatedDevice(rehearse(self.session), self.kind, **self._options)  # type: ignore[arg-type]

    @property
    def clock_seconds(self) -> float:
        """Time at present, on the chip's clock; see `astralora.devices.Clock`."""
        return self._clock.clock_seconds

    def wait(self, seconds: float) -> None:
        """Let time go by on the chip's clock."""
        self._clock.wait(seconds)

    def capability(self, protocol: type[_Capability]) -> _Capability | None:
        """What the chip can do besides answering; see `astralora.devices.PassesOn`."""
        if protocol in _SAME:
            return self.session.capability(protocol)
        return self if isinstance(self, protocol) else None

    # -- Snapshots --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The chip's inner state where it can be saved, and what the references said."""
        with self.session.transaction():
            # The wall's clock starts anew with a process, and goes on between two: what it said is worth nothing then.
            lasting = not isinstance(self._clock, WallClock) and isfinite(self._seen_at)
            return {
                "session": self.session.state_dict(),
                "references": (self._rows or self._references).state_dict(),
                "known": self._known,
                "tells": self._tells,
                "age_seconds": self._age() if lasting else None,
                "factor": self.factor,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Put back what `state_dict` returned; False where the chip could not be, which has to be programmed anew."""
        with self.session.transaction():
            restored = self.session.load_state_dict(state["session"])
            (self._rows or self._references).load_state_dict(state["references"])
            self._known = state["known"] and restored
            self._tells, self.factor = state["tells"], state["factor"]
            age = state["age_seconds"]
            self._seen_at = -inf if age is None else self._clock.clock_seconds - age
            return restored

    # -- inside the lock --------------------------------------------------------------------

    def _asked(self, inputs: Tensor) -> Tensor:
        before = self.session.usage
        answers = self.session.query(inputs)
        if self._rewritten_since(before):
            self._as_programmed()
        if self._rows is not None:
            now = self._clock.clock_seconds
            gain = self._rows.gain(inputs, answers, now - self._seen_at)
            self._seen_at = now
            if gain is not None and self._tells:
                self._scale(gain, torch.tensor(gain, dtype=torch.float64))
            answers = answers[:, : -self._columns]
        answers = answers * self.factor.to(answers)
        bounds = self.spec.output_range
        # An output never was beyond the detector's end; noise that has been scaled might be.
        return answers if bounds is None else answers.clamp(*bounds)

    def _look(self, like: Tensor) -> None:
        before = self.session.usage
        with self.session.purpose("drift"):
            answers = self.session.query(self._references.vectors.to(like))
        if self._rewritten_since(before):
            self._as_programmed()
            return
        self._seen_at = self._clock.clock_seconds
        found = self._references.gains(answers, each=self.kind == "output")
        if found is not None:
            self._scale(*found)

    def _scale(self, common: float, gains: Tensor) -> None:
        if common <= DEAD:
            self.factor = torch.ones(())
            self._warn(f"{100 * common:.0f} % is left of the outputs, which cannot be scaled back; program anew")
        else:
            self.factor = 1 / torch.where(gains > DEAD, gains, common)

    def _as_programmed(self) -> None:
        """The chip has just been written."""
        self._seen_at = self._clock.clock_seconds
        self.factor = torch.ones(())
        if self._rows is not None:
            self._rows.restart()

    def _rewritten_since(self, before: Usage) -> bool:
        """Whether a fault has made the session write the controls anew."""
        now = self.session.usage
        return now.retries > before.retries and now.programs > before.programs

    def _age(self) -> float:
        return self._clock.clock_seconds - self._seen_at

    def _warn(self, message: str) -> None:
        warnings.warn(f"device {self.spec.name!r}: {message}", CompensationWarning, stacklevel=3)


def make_compensated(
    device: str,
    *,
    kind: Compensation = "output",
    every_seconds: float = 60.0,
    vectors: int = 16,
    columns: int = 4,
    **options: Any,
) -> CompensatedDevice:
    """Another registered device, whose drift is undone while it is used.

    Args:
        device: a registered name, or a bench file.
        kind: "global", "output" or "columns".
        every_seconds: from one look at the references to the next.
        vectors: references, of "global" and "output".
        columns: outputs that the device gets beside those asked for, of "columns".
        **options: for that device; sizes, impairments and seed only if it takes them.
    """
    if kind == "columns" and "out_features" in options:
        options["out_features"] += columns
    chip = make_inner(device, options)
    return CompensatedDevice(chip, kind, every_seconds=every_seconds, vectors=vectors, columns=columns)


def _compensated(chip: DeviceSpec, columns: int) -> DeviceSpec:
    """What a compensated chip promises."""
    left = chip.out_features - columns
    update: dict[str, Any] = {
        "out_features": left,
        "num_controls": chip.num_controls - columns * chip.in_features,
        "output_levels": None,
        "noise_std": hypot(chip.noise_std, (chip.output_step or 0.0) / sqrt(12)),
    }
    return chip.model_copy(update=update)


def _objection(chip: DeviceSpec, kind: str, every_seconds: float, vectors: int, columns: int) -> str | None:
    """Why there is no such compensation of this chip."""
    kinds = get_args(Compensation)
    if kind not in kinds:
        return f"there is no compensation {kind!r}; known are {', '.join(kinds)}"
    if not chip.linear:
        return "is not linear: no factor undoes its drift"
    if not (isfinite(every_seconds) and every_seconds > 0):
        return f"every_seconds must be positive and finite, not {every_seconds!r}"
    if kind != "columns":
        return None if vectors >= 2 else f"vectors must be at least 2, to tell a gain from an offset, not {vectors}"
    if chip.coupling != "elementwise":
        return "columns can be given up only where every matrix entry has a control of its own; use kind='output'"
    if not 0 < columns < chip.out_features:
        return f"columns must be at least 1 and fewer than the {chip.out_features} outputs of the chip, not {columns}"
    return None
