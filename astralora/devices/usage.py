"""Count operations, and limit them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from .html import html_table
from .spec import DeviceSpec
from .validation import Described

__all__ = ["Budget", "Usage"]

_Limit = Annotated[int, Field(ge=0)] | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Count the operations that were sent to a device, including operations without an answer.

    Attributes:
        programs: number of times that all controls were set.
        queries: number of calls that passed vectors.
        vectors: number of vectors passed.
        seconds: measured duration of the calls on this machine.
        retries: number of operations repeated after a fault.
        bytes: number of bytes of controls, inputs and outputs moved.
    """

    programs: int = 0
    queries: int = 0
    vectors: int = 0
    seconds: float = 0.0
    retries: int = 0
    bytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.programs + other.programs,
            self.queries + other.queries,
            self.vectors + other.vectors,
            self.seconds + other.seconds,
            self.retries + other.retries,
            self.bytes + other.bytes,
        )

    def __sub__(self, other: Usage) -> Usage:
        return self + other.scaled(-1)

    def scaled(self, factor: float) -> Usage:
        """Return ``factor`` times this usage; the counters may become fractions."""
        return Usage(*(factor * value for value in self.to_list()))

    def hardware_seconds(self, spec: DeviceSpec) -> float:
        """Return the time that the programs and vectors take on hardware, in seconds, by the times in the spec."""
        return self.programs * spec.program_seconds + self.vectors * spec.vector_seconds

    def hardware_joules(self, spec: DeviceSpec) -> float:
        """Return the energy that the programs and vectors take on hardware, in joules, by the energies in the spec."""
        return self.programs * spec.program_joules + self.vectors * spec.vector_joules

    def rounded(self) -> Usage:
        """Return this usage with the counters rounded to whole operations."""
        whole = [value if name == "seconds" else round(value) for name, value in asdict(self).items()]
        return Usage(*whole)

    def to_list(self) -> list[Any]:
        """Return the counters in the order of ``Usage(*counters)``."""
        return [self.programs, self.queries, self.vectors, self.seconds, self.retries, self.bytes]

    def _repr_html_(self) -> str:
        """Return the counters as a table for notebooks."""
        return html_table("Usage", list(asdict(self).items()))

    def to_dict(self) -> dict[str, Any]:
        """Return the counters by name."""
        return asdict(self)


class Budget(Described):
    """Limit the operations on a device; None sets no limit.

    Attributes:
        programs: number of times that all controls are set.
        queries: number of calls that pass vectors.
        vectors: number of vectors passed.
        hardware_seconds: seconds that programs and vectors take on hardware, by the times in the spec.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    programs: _Limit = None
    queries: _Limit = None
    vectors: _Limit = None
    hardware_seconds: Annotated[float, Field(ge=0)] | None = None

    def left_after(self, spent: Usage, spec: DeviceSpec) -> Budget:
        """Return the budget that is left after operations on a device with this spec; no limit is below 0."""
        limits: dict[str, Any] = {
            name: None if limit is None else max(0, limit - getattr(spent, name))
            for name, limit in (("programs", self.programs), ("queries", self.queries), ("vectors", self.vectors))
        }
        if self.hardware_seconds is not None:
            limits["hardware_seconds"] = max(0.0, self.hardware_seconds - spent.hardware_seconds(spec))
        return Budget(**limits)

    def shortfall(self, spent: Usage, spec: DeviceSpec) -> str | None:
        """Describe how ``spent`` exceeds this budget; return None if it does not."""
        for name in ("programs", "queries", "vectors"):
            limit = getattr(self, name)
            if limit is not None and getattr(spent, name) > limit:
                return f"{getattr(spent, name)} {name} of a budget of {limit}"
        if self.hardware_seconds is not None:
            seconds = spent.hardware_seconds(spec)
            # Sums of decimal prices are not exact in binary; a usage equal to the budget must be accepted.
            if seconds > self.hardware_seconds * (1 + 1e-9):
                return f"{seconds:.6g} hardware seconds of a budget of {self.hardware_seconds:.6g}"
        return None
