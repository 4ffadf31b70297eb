"""Check the measurements of a file before anything uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError

from ..devices import DeviceSpec
from ..devices.validation import first_problem
from .findings import Characterisation, Finding

__all__ = ["read_characterisation"]

_COUNTS = ("programs", "vectors")
_LEVELS = ("input_levels", "control_levels", "output_levels")

# The shape of each list of numbers, by finding and name. A word is a length: one of the spec, or the same for all lists
# of a finding; "..." is any length, and "2" is two numbers.
_SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "noise_std": {"std": ("out_features",), "samples": ("...",)},
    "dark_level": {"offset": ("out_features",), "error": ("out_features",)},
    "dead_outputs": {"power": ("out_features",)},
    "dead_inputs": {"power": ("in_features",)},
    "stuck_controls": {"grid": ("2",), "moved": ("cells",)},
    "transfer_curve": {"control": ("points",), "entry": ("points",), "spread": ("points",), "promised": ("points",)},
    "crosstalk": {"kernel": ("side", "side"), "errors": ("side", "side")},
    "flicker_corner": {"frequency": ("points",), "power": ("points",), "white": (), "corner": ()},
    "linearity_error": {"strength": ("points",), "response": ("points",)},
    "settling": {"time": ("points",), "share": ("points",)},
    "drift_exponent": {"time": ("points",), "gain": ("points",), "error": ()},
}
_OPTIONAL = {("stuck_controls", "moved"), ("transfer_curve", "promised")}
# The size of the spec that the indices "which" count, by finding.
_INDICES = {"dead_outputs": "out_features", "dead_inputs": "in_features", "stuck_controls": "num_controls"}


def read_characterisation(values: object) -> Characterisation:
    """Make a characterisation from the content of a file.

    Raises:
        ValueError: a value is missing or wrong; the message is one sentence that names it.
    """
    try:
        found = Characterisation.model_validate(values)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    for problem in _problems(found):
        raise ValueError(problem)
    return found


def _problems(found: Characterisation) -> Iterator[str]:
    """Describe what is wrong, one sentence each."""
    for place, spent in (
        ("spent", found.spent),
        *((f"spent_by_measurement.{name}", each) for name, each in found.spent_by_measurement.items()),
    ):
        for name in _COUNTS:
            if spent.get(name, -1) < 0:
                yield f"{place}.{name} must be a number of {name}, at least 0"
    names = [finding.name for finding in found.findings]
    for number, finding in enumerate(found.findings):
        where = f"findings.{number} ({finding.name})"
        if names.count(finding.name) > 1:
            yield f"{where} is there twice, and must be there once"
        if finding.name in _LEVELS and finding.value is not None and not 1.5 < finding.value < 2**32:
            yield f"{where} has the value {finding.value:g}, and must have 2 to 2^32 levels"
        if finding.name == "noise_std" and finding.value is not None and finding.value < 0:
            yield f"{where} has the value {finding.value:g}, and must not be negative"
        if finding.data:
            yield from (f"{where}: {problem}" for problem in _data_problems(finding, found.promised))


def _data_problems(finding: Finding, spec: DeviceSpec) -> Iterator[str]:
    """Describe lists of numbers that are missing or have a wrong shape."""
    lengths = {name: getattr(spec, name) for name in ("in_features", "out_features", "num_controls")}
    lengths["2"] = 2
    data: Mapping[str, Any] = finding.data
    for name, shape in _SHAPES.get(finding.name, {}).items():
        if data.get(name) is None and (finding.name, name) in _OPTIONAL:
            continue
        array = _as_array(data.get(name))
        if array is None or array.ndim != len(shape):
            kind = {0: "a number", 1: "a list of numbers", 2: "a list of equal lists of numbers"}[len(shape)]
            yield f"data.{name} must be {kind}"
            return
        for length, word in zip(array.shape, shape, strict=True):
            if not length or (word != "..." and lengths.setdefault(word, length) != length):
                wanted = "at least one number" if not length else f"{lengths[word]} numbers"
                yield f"data.{name} has {length} numbers, and must have {wanted}"
    if finding.name == "stuck_controls":
        yield from _grid_problems(data, spec)
    if finding.name == "settling" and len(data["time"]) < 2:
        yield "data.time has one number, and must have two or more"
    if finding.name in _INDICES:
        yield from _index_problems(data.get("which"), getattr(spec, _INDICES[finding.name]), _INDICES[finding.name])


def _grid_problems(data: Mapping[str, Any], spec: DeviceSpec) -> Iterator[str]:
    """Describe a map of the controls that does not fit the spec."""
    rows, columns = data["grid"]
    if rows * columns != spec.num_controls:
        yield f"data.grid must be the rows and columns of {spec.num_controls} controls, not {rows} and {columns}"
    if data.get("moved") is not None and len(data["moved"]) != spec.num_controls:
        yield f"data.moved has {len(data['moved'])} numbers, and must have {spec.num_controls}"


def _index_problems(which: Any, count: int, what: str) -> Iterator[str]:
    if not isinstance(which, list) or not all(type(each) is int and 0 <= each < count for each in which):
        yield f"data.which must be a list of whole numbers from 0 to {count - 1}, since there are {count} {what}"
    elif len(set(which)) < len(which):
        yield "data.which has a number twice, and must have each once"


def _as_array(value: Any) -> np.ndarray[Any, Any] | None:
    """Return numbers as an array; None for everything else, and for lists of unequal lengths."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        return None
    numbers = array.dtype.kind in "iuf" and bool(np.isfinite(array).all())
    return array if numbers else (np.empty(0) if isinstance(value, list) and not value else None)
