"""What was spent, and what may be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .html import html_table
from .spec import DeviceSpec

__all__ = ["Budget", "Usage"]

_Limit = Annotated[int, Field(ge=0)] | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Operations that a device was asked for, whether or not its answer arrived.

    Attributes:
        programs: settings of all controls.
        queries: calls that passed vectors.
        vectors: vectors passed.
        seconds: time that the calls took here, as measured.
        retries: operations repeated after a fault.
        bytes: controls, inputs and outputs moved.
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
        """This usage, ``factor`` times; the counters may be fractions then."""
        return Usage(*(factor * value for value in self.to_list()))

    def hardware_seconds(self, spec: DeviceSpec) -> float:
        """The price in seconds on hardware: programs and vectors at the spec's own rates."""
        return self.programs * spec.program_seconds + self.vectors * spec.vector_seconds

    def hardware_joules(self, spec: DeviceSpec) -> float:
        """The same in energy."""
        return self.programs * spec.program_joules + self.vectors * spec.vector_joules

    def rounded(self) -> Usage:
        """This usage in whole operations."""
        whole = [value if name == "seconds" else round(value) for name, value in asdict(self).items()]
        return Usage(*whole)

    def to_list(self) -> list[Any]:
        """The counters in their order, which ``Usage(*counters)`` takes back."""
        return [self.programs, self.queries, self.vectors, self.seconds, self.retries, self.bytes]

    def _repr_html_(self) -> str:
        """Return the counters as a table for notebooks."""
        return html_table("Usage", list(asdict(self).items()))

    def to_dict(self) -> dict[str, Any]:
        """The counters by name."""
        return asdict(self)


class Budget(BaseModel):
    """The most that may be spent; None sets no limit.

    Attributes:
        programs: settings of all controls.
        queries: calls that pass vectors.
        vectors: vectors passed.
        hardware_seconds: programs and vectors, priced at the spec's rates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    programs: _Limit = None
    queries: _Limit = None
    vectors: _Limit = None
    hardware_seconds: Annotated[float, Field(ge=0)] | None = None

    def shortfall(self, spent: Usage, spec: DeviceSpec) -> str | None:
        """Why ``spent`` is more than this budget, in words; None where it is not."""
        for name in ("programs", "queries", "vectors"):
            limit = getattr(self, name)
            if limit is not None and getattr(spent, name) > limit:
                return f"{getattr(spent, name)} {name} of a budget of {limit}"
        if self.hardware_seconds is not None:
            seconds = spent.hardware_seconds(spec)
            # Sums of decimal prices: equal budgets must not fail on the last binary digit.
            if seconds > self.hardware_seconds * (1 + 1e-9):
                return f"{seconds:.6g} hardware seconds of a budget of {self.hardware_seconds:.6g}"
        return None
