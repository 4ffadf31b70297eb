"""Compensate the drift of a chip during inference."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import hypot, inf, isfinite, sqrt
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..capabilities import Clock, Composite, Rehearses, ReportsPeaks, Snapshots, Thermometer
from ..checks import check_controls, check_inputs
from ..clock import WallClock, clock_of
from ..device import Device
from ..errors import DeviceError, NotConnected
from ..ledger import Purpose
from ..registry import make_inner
from ..session import Session
from ..spec import DeviceSpec
from ..usage import Usage
from ..wrapper import DeviceWrapper
from .references import DEAD, References, Rows, reference_controls
from .rehearsal import rehearse

__all__ = ["CompensatedDevice", "Compensation", "CompensationWarning", "make_compensated"]

Compensation = Literal["global", "output", "columns"]
"""Kind of compensation: one factor for all outputs, one for each output, or one from extra outputs of the chip."""


class CompensationWarning(UserWarning):
    """Warn that drift cannot be compensated, because of noise or because the outputs have nearly vanished."""


class CompensatedDevice(DeviceWrapper):
    """Compensate drift by scaling the outputs back to their strength right after the program.

    Additional costs:

    ==========  =====================  ==========================================  ===========  ===================
    kind        vectors per program    vectors later                               outputs      compensates
    ==========  =====================  ==========================================  ===========  ===================
    "global"    4 ``vectors``          ``vectors``, with the first query after     none         the mean drift of
                                       every ``every_seconds``                                  all outputs
    "output"    4 ``vectors``          ``vectors``, with the first query after     none         the drift of every
                                       every ``every_seconds``                                  output
    "columns"   1 to 2 per input       none                                        ``columns``  the mean drift of
                                                                                                the columns
    ==========  =====================  ==========================================  ===========  ===================

    ``"global"`` and ``"output"`` query reference vectors right after every program, and again later. The outputs are
    divided by the ratio of the later answers to the first ones. There is one ratio for all outputs (Joshi et al., Nat.
    Commun. 11, 2473 (2020)), or one for each output, which noise moves towards the common ratio.

    ``"columns"`` uses the last ``columns`` outputs of the chip as references. Their controls are fixed, and their rows
    of the transfer matrix are measured right after every program. Every query then compares these outputs with their
    expected values, and divides the other outputs by the ratio. This needs no more vectors and no pause, but assumes
    that all outputs drift like the references.

    No kind compensates offsets, different drift of the entries of one output, or noise; noise grows with the factor.
    The clock of the chip determines the age of the references, see `clock_of`. Their queries are recorded under the
    purpose "drift" in `session`. References cost vectors after every program, so use this wrapper for inference, not
    for training. Programming the same controls again changes nothing, and does not reset the age.

    Args:
        device: linear chip, or a session on it, whose budget and counters then stay in use.
        kind: kind of compensation.
        every_seconds: seconds between two queries of the references; for ``"columns"``, time constant of the average
            over earlier answers.
        vectors: number of references, for ``"global"`` and ``"output"``; at least 2.
        columns: number of outputs used as references, for ``"columns"``.
        seed: seed of the references.

    Attributes:
        session: session on the chip.
        factor: factor of the newest outputs, () or (out_features,).

    Raises:
        DeviceError: the chip is not linear, it has too few outputs, or an argument is out of range.
    """

    capabilities: ClassVar[tuple[type, ...]] = (Composite, Rehearses, Snapshots)
    forwards: ClassVar[tuple[type, ...]] = (Clock, ReportsPeaks, Thermometer)

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
        super().__init__(self.session)
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
        self._has_references = False  # whether the references were measured for the present controls of the chip
        self._is_reliable = True  # whether the answers to the references exceed the noise
        self._measured_at = 0.0
        self.factor: Tensor = torch.ones(())
        self._spec = _compensated(chip, self._columns)

    @property
    def spec(self) -> DeviceSpec:
        """Return the spec of the chip; for ``"columns"``, without the reference outputs and their controls.

        Outputs stay within the output range of the chip, but scaled outputs are not codes of its converter.
        """
        return self._spec

    # -- Device -----------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the chip in its safe state and disconnect."""
        self.session.close()
        self._has_references = False

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,), and measure the references; do nothing if the controls are set already.

        Raises:
            OutOfRange, BudgetExceeded, NotConnected: before anything is sent; the budget must cover the program and
                the references.
        """
        check_controls(self.spec, controls, "program")
        whole = torch.cat([controls.detach(), self._fixed.to(controls)]) if self._columns else controls
        watch = self._rows or self._references
        with self.session.transaction():
            if self._has_references and self.session.holds(whole):
                return
            self.session.afford("program", programs=1, batches=(len(watch.at_program),), first=whole)
            self._has_references = False
            try:
                self.session.program(whole)
                with self.session.purpose(Purpose.DRIFT):
                    self._is_reliable = watch.begin(self.session.query(watch.at_program.to(controls)))
            except BaseException:
                # Otherwise a second attempt would skip the program, and measure references on a chip that has drifted.
                self.session.forget()
                raise
            self._has_references = True
            self._as_programmed()
        if not self._is_reliable:
            self._warn(
                "the answers to the references hardly exceed the noise and cannot show drift; use more references"
            )

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through, (batch, in_features) -> (batch, out_features), and compensate the drift.

        Raises:
            OutOfRange, BudgetExceeded, NotConnected: before anything is sent, references included.
        """
        with self.session.transaction():
            if not self._has_references:
                raise NotConnected("no controls are set; call program first", device=self.spec.name, operation="query")
            check_inputs(self.spec, inputs, "query")
            if not len(inputs):
                return inputs.new_empty(0, self.spec.out_features)
            due = self._rows is None and self._is_reliable and self._age() >= self.every_seconds
            references = (len(self._references.vectors),) if due else ()
            self.session.afford("query", batches=(*references, len(inputs)))
            if due:
                self._measure_references(inputs)
            # In batches of max_batch, because a retry may reset the factor between two batches.
            return torch.cat([self._query_piece(part) for part in inputs.split(self.spec.max_batch or len(inputs))])

    # -- Composite, Rehearses ---------------------------------------------------------------

    @property
    def usage(self) -> Usage:
        """Return the usage of the chip, references included."""
        return self.session.usage

    def price(self, usage: Usage) -> Usage:
        """Return the largest possible usage of the chip: references are queried after every program and every query."""
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
        """Return this wrapper around a substitute of the chip, so that the references are counted too."""
        return CompensatedDevice(rehearse(self.session), self.kind, **self._options)  # type: ignore[arg-type]

    # -- Snapshots --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the inner state of the chip, if it can be saved, and the measured references."""
        with self.session.transaction():
            # The wall clock has a different origin in every process, so its readings are not saved.
            lasting = not isinstance(self._clock, WallClock) and isfinite(self._measured_at)
            return {
                "session": self.session.state_dict(),
                "references": (self._rows or self._references).state_dict(),
                "known": self._has_references,
                "tells": self._is_reliable,
                "age_seconds": self._age() if lasting else None,
                "factor": self.factor,
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Restore the state that `state_dict` returned; return False if the chip must be programmed again."""
        with self.session.transaction():
            restored = self.session.load_state_dict(state["session"])
            (self._rows or self._references).load_state_dict(state["references"])
            self._has_references = state["known"] and restored
            self._is_reliable, self.factor = state["tells"], state["factor"]
            age = state["age_seconds"]
            self._measured_at = -inf if age is None else self._clock.clock_seconds - age
            return restored

    # -- called while the lock is held ------------------------------------------------------

    def _query_piece(self, inputs: Tensor) -> Tensor:
        before = self.session.usage
        answers = self.session.query(inputs)
        if self._rewritten_since(before):
            self._as_programmed()
        if self._rows is not None:
            now = self._clock.clock_seconds
            gain = self._rows.gain(inputs, answers, now - self._measured_at)
            self._measured_at = now
            if gain is not None and self._is_reliable:
                self._scale(gain, torch.tensor(gain, dtype=torch.float64))
            answers = answers[:, : -self._columns]
        answers = answers * self.factor.to(answers)
        bounds = self.spec.output_range
        # Scaled outputs may exceed the range of the detector.
        return answers if bounds is None else answers.clamp(*bounds)

    def _measure_references(self, like: Tensor) -> None:
        before = self.session.usage
        with self.session.purpose(Purpose.DRIFT):
            answers = self.session.query(self._references.vectors.to(like))
        if self._rewritten_since(before):
            self._as_programmed()
            return
        self._measured_at = self._clock.clock_seconds
        found = self._references.gains(answers, each=self.kind == "output")
        if found is not None:
            self._scale(*found)

    def _scale(self, common: float, gains: Tensor) -> None:
        if common <= DEAD:
            self.factor = torch.ones(())
            self._warn(
                f"only {100 * common:.0f} % of the signal is left, too little to scale back; program the chip again"
            )
        else:
            self.factor = 1 / torch.where(gains > DEAD, gains, common)

    def _as_programmed(self) -> None:
        """Reset the factor and the age of the references after a program."""
        self._measured_at = self._clock.clock_seconds
        self.factor = torch.ones(())
        if self._rows is not None:
            self._rows.restart()

    def _rewritten_since(self, before: Usage) -> bool:
        """Return whether the session has programmed the controls again after a fault."""
        return self.session.usage.programs > before.programs

    def _age(self) -> float:
        return self._clock.clock_seconds - self._measured_at

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
    """Make a registered device with compensated drift.

    Args:
        device: a registered name, or a bench file.
        kind: "global", "output" or "columns".
        every_seconds: seconds between two queries of the references.
        vectors: number of references, for "global" and "output".
        columns: number of additional outputs of the device, for "columns".
        **options: options of the device; sizes, impairments and seed are left out if it does not take them.
    """
    if kind == "columns" and "out_features" in options:
        options["out_features"] += columns
    chip = make_inner(device, options)
    return CompensatedDevice(chip, kind, every_seconds=every_seconds, vectors=vectors, columns=columns)


def _compensated(chip: DeviceSpec, columns: int) -> DeviceSpec:
    """Return the spec of a compensated chip."""
    left = chip.out_features - columns
    update: dict[str, Any] = {
        "out_features": left,
        "num_controls": chip.num_controls - columns * chip.in_features,
        "output_levels": None,
        "noise_std": hypot(chip.noise_std, (chip.output_step or 0.0) / sqrt(12)),
    }
    return chip.model_copy(update=update)


def _objection(chip: DeviceSpec, kind: str, every_seconds: float, vectors: int, columns: int) -> str | None:
    """Return the reason why this chip cannot be compensated in this way, or None."""
    kinds = get_args(Compensation)
    if kind not in kinds:
        return f"there is no compensation {kind!r}; known are {', '.join(kinds)}"
    if not chip.linear:
        return "is not linear, so no factor can compensate its drift; use a linear chip"
    if not (isfinite(every_seconds) and every_seconds > 0):
        return f"every_seconds must be positive and finite, not {every_seconds!r}"
    if kind != "columns":
        return None if vectors >= 2 else f"vectors must be at least 2, to separate gain and offset, not {vectors}"
    if chip.coupling != "elementwise":
        return (
            "kind='columns' needs one control for every matrix entry, but the chip has another coupling; use 'output'"
        )
    if not 0 < columns < chip.out_features:
        return f"columns must be at least 1 and fewer than the {chip.out_features} outputs of the chip, not {columns}"
    return None
