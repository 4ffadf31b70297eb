"""Describe a device: sizes, ranges, converters and claims."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, FiniteFloat, PositiveInt, model_validator

from .html import html_table
from .reach import Patch, check_reach
from .validation import Described

__all__ = ["Coupling", "DeviceSpec", "Range"]

Range = tuple[FiniteFloat, FiniteFloat]
"""Lowest and highest value, both included."""

Coupling = Literal["elementwise", "output", "sparse", "dense"]
"""Part of the transfer matrix that one control can change: one entry, one row, a listed part, or every entry."""

_Levels = Annotated[int, Field(ge=2)]
_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DeviceSpec(Described):
    """Describe a device by its sizes, ranges, converters and claims; the defaults claim nothing.

    A range of ``None`` means that the device sets no limit. Levels of ``None`` mean that the device does not quantize.
    Levels are counted over the whole range, both ends included: 8 bits are 256 levels.

    Attributes:
        name: name of the device in every message.
        in_features: length n of one input vector.
        out_features: length m of one output vector.
        num_controls: number P of programmable controls.
        input_range: legal input values, in input units.
        control_range: legal control values, in ``control_unit``.
        output_range: values that the detector can report, in output units; outside of it the output saturates.
        input_levels: distinct input codes over ``input_range`` (DAC).
        control_levels: distinct control codes over ``control_range``.
        output_levels: distinct output codes over ``output_range`` (ADC).
        control_unit: unit of the controls, such as ``"rad"`` or ``"V"``.
        initial_range: range from which training draws the first controls; None for the whole control range.
        linear: whether the outputs are a linear function of the inputs, ``y = A(w) x``.
        coupling: part of the transfer matrix that one control can change. ``"elementwise"``: control
            ``i * in_features + j`` changes only entry (i, j). ``"output"``: the controls form ``out_features`` runs of
            equal length, and run i changes only output i. ``"sparse"``: the part that ``reach`` lists. ``"dense"``:
            every entry.
        reach: with ``coupling="sparse"``, the part of the transfer matrix that each run of controls can change.
        noise_std: standard deviation of one output of one query, in output units.
        idempotent_program: whether programming the same controls twice has the same effect as programming them once, so
            that a program may be sent again if its answer was lost.
        max_batch: largest number of vectors in one query.
        program_seconds: time to set all controls once, settling included.
        vector_seconds: time to pass one vector.
        program_joules: energy to set all controls once.
        vector_joules: energy to pass one vector.
        serial_number: serial number of the unit; a calibration belongs to one serial number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    in_features: PositiveInt
    out_features: PositiveInt
    num_controls: PositiveInt
    input_range: Range | None = None
    control_range: Range | None = None
    output_range: Range | None = None
    input_levels: _Levels | None = None
    control_levels: _Levels | None = None
    output_levels: _Levels | None = None
    control_unit: str = ""
    initial_range: Range | None = None
    linear: bool = False
    coupling: Coupling = "dense"
    reach: tuple[Patch, ...] | None = Field(default=None, repr=False)
    noise_std: _NonNegative = 0.0
    idempotent_program: bool = False
    max_batch: PositiveInt | None = None
    program_seconds: _NonNegative = 0.0
    vector_seconds: _NonNegative = 0.0
    program_joules: _NonNegative = 0.0
    vector_joules: _NonNegative = 0.0
    serial_number: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what in ("input", "control", "output"):
            bounds: Range | None = getattr(self, f"{what}_range")
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"the second value of {what}_range must be above the first, but it is {bounds}")
            if bounds is None and getattr(self, f"{what}_levels") is not None:
                raise ValueError(f"{what}_levels needs {what}_range, because levels are counted over the range")
        if self.initial_range is not None:
            low, high = self.initial_range
            if low > high:
                raise ValueError(
                    f"the second value of initial_range must not be below the first, but it is {self.initial_range}"
                )
            bounds = self.control_range
            if bounds is not None and not bounds[0] <= low <= high <= bounds[1]:
                raise ValueError(f"initial_range {self.initial_range} must lie within control_range {bounds}")
        entries = self.in_features * self.out_features
        if self.coupling == "elementwise" and self.num_controls != entries:
            raise ValueError(
                f"elementwise coupling needs one control per matrix entry, {entries}, "
                f"but num_controls is {self.num_controls}"
            )
        if self.coupling == "output" and self.num_controls % self.out_features:
            raise ValueError(
                f"output coupling needs num_controls to be a multiple of out_features, "
                f"{self.out_features}, but it is {self.num_controls}"
            )
        if (self.reach is not None) != (self.coupling == "sparse"):
            raise ValueError("reach and coupling='sparse' belong together: give both or neither")
        if self.reach is not None:
            check_reach(self.reach, self.num_controls, self.in_features, self.out_features)
        return self

    def _repr_html_(self) -> str:
        """Return the fields that differ from their defaults as a table for notebooks, without the long ``reach``."""
        rows = [
            (name, getattr(self, name))
            for name, field in type(self).model_fields.items()
            if name not in ("name", "reach") and getattr(self, name) != field.default
        ]
        return html_table(f"Device {self.name}", rows)

    def backward(self) -> DeviceSpec:
        """Return the spec of the reverse port of a `Reciprocal` device, with inputs and outputs exchanged.

        The reverse port has the same kind of modulators and detectors.
        """
        swapped = {"in_features": self.out_features, "out_features": self.in_features}
        # The coupling is not transposed, because the reverse port does not use it.
        return self.model_copy(update={**swapped, "coupling": "dense", "reach": None})

    def queries_for(self, vectors: int) -> int:
        """Return the number of queries that are necessary for ``vectors`` vectors, with ``max_batch`` vectors each."""
        return ceil(vectors / self.max_batch) if self.max_batch else min(vectors, 1)

    @property
    def input_step(self) -> float | None:
        """Return the distance between neighbouring input codes, in input units; None if continuous."""
        if self.input_levels is None or self.input_range is None:
            return None
        return (self.input_range[1] - self.input_range[0]) / (self.input_levels - 1)

    @property
    def control_step(self) -> float | None:
        """Return the distance between neighbouring control codes, in control units; None if continuous."""
        if self.control_levels is None or self.control_range is None:
            return None
        return (self.control_range[1] - self.control_range[0]) / (self.control_levels - 1)

    @property
    def rails(self) -> tuple[float, ...]:
        """Return the ends of the output range at which outputs saturate, except zero, which means no light."""
        low, high = self.output_range or (0.0, 0.0)
        return tuple(rail for rail, away in ((low, low < 0), (high, high > 0)) if away)

    @property
    def output_step(self) -> float | None:
        """Return the distance between neighbouring output codes, in output units; None if continuous."""
        if self.output_levels is None or self.output_range is None:
            return None
        return (self.output_range[1] - self.output_range[0]) / (self.output_levels - 1)
