"""Check that the parts of a calibration fit together, before anything uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .spec import DeviceSpec

__all__ = ["check_findings", "check_tensors"]

_NUMBERS = ("value", "low", "high", "promised")
_SIZES = ("in_features", "out_features", "num_controls")

# The size of the spec that each tensor has, by the name of the tensor.
_VECTORS = {
    "constants/input_gain": "in_features",
    "constants/input_offset": "in_features",
    "constants/output_gain": "out_features",
    "constants/output_offset": "out_features",
    "fixed": "num_controls",
    "fixed_errors": "num_controls",
    "noise/by_output": "out_features",
    "dark/offset": "out_features",
    "dark/error": "out_features",
}
# The size of the spec that indices count, by the name of their tensor.
_INDICES = {"dead_outputs": "out_features", "dead_inputs": "in_features", "stuck_controls": "num_controls"}
# Tensors that belong together and have equal shapes.
_PAIRS = (
    ("dark/offset", "dark/error"),
    ("held_out/measured", "held_out/foreseen"),
    ("curve/control", "curve/entry", "curve/spread"),
    ("crosstalk/kernel", "crosstalk/errors"),
)
# Standard deviations; those that are unknown may be infinite.
_DEVIATIONS = ("errors/", "noise/", "dark/error", "curve/spread", "crosstalk/errors", "fixed_errors")


def check_tensors(tensors: Mapping[str, Tensor], promised: DeviceSpec, measured: DeviceSpec, *, fits: bool) -> None:
    """Refuse tensors that do not fit the spec or each other.

    Args:
        tensors: tensors of a calibration by name.
        promised: spec that the device claims.
        measured: spec with measured values.
        fits: whether the record uses the constants.

    Raises:
        ValueError: a tensor is not valid; the message names it, what is wrong, and what would be right.
    """
    for what in _SIZES:
        if getattr(promised, what) != getattr(measured, what):
            raise ValueError(
                f"measured.{what} is {getattr(measured, what)}, and must be {getattr(promised, what)} as in promised"
            )
    for problem in _problems(tensors, promised, fits):
        raise ValueError(problem)


def check_findings(findings: Sequence[Mapping[str, Any]]) -> None:
    """Refuse findings that lack a part or have one of a wrong type.

    Raises:
        ValueError: a finding is not valid; the message names it and the part.
    """
    for place, finding in enumerate(findings):
        for part in ("name", "sentence"):
            if not isinstance(finding.get(part), str) or not finding[part]:
                raise ValueError(f"findings.{place}.{part} must be a text that is not empty")
        if not isinstance(finding.get("unit"), str):
            raise ValueError(f"findings.{place}.unit must be a text")
        for part in _NUMBERS:
            value = finding.get(part, "missing")
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise ValueError(f"findings.{place}.{part} must be a number or null")
        if finding.get("agrees", "missing") not in (True, False, None):
            raise ValueError(f"findings.{place}.agrees must be true, false or null")


def _problems(tensors: Mapping[str, Tensor], spec: DeviceSpec, fits: bool) -> Iterator[str]:
    """Describe what is wrong, one sentence each."""
    for name, tensor in tensors.items():
        if name in _INDICES:
            yield from _index_problems(name, tensor, getattr(spec, _INDICES[name]), _INDICES[name])
            continue
        if not tensor.is_floating_point():
            yield f"the tensor {name} has {_kind(tensor)}, and must have floating-point numbers"
        what = _VECTORS.get(name)
        if what is not None and tensor.shape != (getattr(spec, what),):
            yield f"the tensor {name} has shape {_shape(tensor)}, and must have ({getattr(spec, what)},), the {what}"
        if name.startswith(("constants/", "errors/", "nominal/")) and not fits:
            continue  # the record does not use them
        yield from _value_problems(name, tensor)
    for names in _PAIRS:
        present = [name for name in names if name in tensors]
        if present and len(present) < len(names):
            yield f"the tensor {present[0]} needs {' and '.join(name for name in names if name not in present)}"
        yield from _shape_problems(tensors, present)
    for name in tensors:
        kind, _, constant = name.partition("/")
        if kind == "constants" and fits:
            beside = [f"{each}/{constant}" for each in ("errors", "nominal") if f"{each}/{constant}" in tensors]
            yield from _shape_problems(tensors, [name, *beside])
    held_out = tensors.get("held_out/measured")
    if held_out is not None and (held_out.ndim < 2 or held_out.shape[-1] != spec.out_features or not len(held_out)):
        wanted = f"(settings, vectors, {spec.out_features})"
        yield f"the tensor held_out/measured has shape {_shape(held_out)}, and must have {wanted}"


def _value_problems(name: str, tensor: Tensor) -> Iterator[str]:
    """Describe values that are not finite, or negative where they are deviations."""
    deviation = name.startswith(_DEVIATIONS)
    # For all controls that are not stuck, these two are nan.
    values = tensor[~tensor.isnan()] if name in ("fixed", "fixed_errors") else tensor
    allowed = (values >= 0) if deviation else values.isfinite()
    if name.startswith("noise/"):
        allowed = allowed & values.isfinite()
    if not bool(allowed.all()):
        value = float(values[~allowed].flatten()[0])
        wanted = "no negative values" if deviation else "finite values"
        yield f"the tensor {name} has the value {value:g}, and must have {wanted}"


def _shape_problems(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Iterator[str]:
    for name in names[1:]:
        if tensors[name].shape != tensors[names[0]].shape:
            yield (
                f"the tensor {name} has shape {_shape(tensors[name])}, and must have {_shape(tensors[names[0]])} as "
                f"{names[0]}"
            )


def _index_problems(name: str, tensor: Tensor, count: int, what: str) -> Iterator[str]:
    if tensor.dtype != torch.int64 or tensor.ndim != 1:
        yield f"the tensor {name} has {_kind(tensor)} of shape {_shape(tensor)}, and must have one row of int64 indices"
    elif len(tensor) and not 0 <= int(tensor.min()) <= int(tensor.max()) < count:
        wrong = tensor[(tensor < 0) | (tensor >= count)]
        yield f"the tensor {name} has the index {int(wrong[0])}, and the spec has {count} {what}, counted from 0"
    elif len(tensor.unique()) < len(tensor):
        yield f"the tensor {name} has an index twice, and must have each once"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
