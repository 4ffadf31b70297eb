"""Compute the parts of Adafactor: second moments by rows and columns, clipped updates, relative step sizes."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from .quantization import Storage

__all__ = ["clip", "precondition", "rms", "second_moment", "step_size", "store_second_moment"]

State = MutableMapping[str, Any]


def precondition(grad: Tensor, state: State, storage: Storage, *, beta2: float, eps: float, factorize: bool) -> Tensor:
    """Divide a gradient by the root of its averaged square, g / sqrt(v).

        V <- beta2 V + (1 - beta2) (g^2 + eps)

    The average holds every entry. If factorised, it holds only the means R of its rows and C of its columns, with v_ij
    = R_i C_j / mean(R) (Shazeer and Stern, arXiv 1804.04235, algorithm 4). The last two axes of a tensor are its rows
    and columns.

    Args:
        grad: gradient g, in the precision of the computation.
        state: state of the parameter, in which the averages are replaced.
        storage: format of the averages in the state.
        beta2: decay of the averages; 0 in the first step.
        eps: number added to every square.
        factorize: store rows and columns if that is smaller.
    """
    square = grad.square().add_(eps)
    if not (factorize and _has_rows_and_columns(grad.shape)):
        return grad * _average(state, storage, "square", square, beta2).rsqrt()
    rows = _average(state, storage, "rows", square.mean(dim=-1), beta2)
    columns = _average(state, storage, "columns", square.mean(dim=-2), beta2)
    row_factor = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    return grad * row_factor * columns.rsqrt().unsqueeze(-2)


def second_moment(state: Mapping[str, Any], storage: Storage) -> Tensor | None:
    """Return the averages v in the shape of the parameter: as stored, or R_i C_j / mean(R)."""
    rows, columns = (storage.get(state, name, signed=False) for name in ("rows", "columns"))
    if rows is None or columns is None:
        return storage.get(state, "square", signed=False)
    return (rows / rows.mean(dim=-1, keepdim=True)).unsqueeze(-1) * columns.unsqueeze(-2)


def store_second_moment(v: Tensor, state: State, storage: Storage, *, factorize: bool) -> None:
    """Store the averages v of all entries as `precondition` does: whole, or as the means of rows and columns."""
    if factorize and _has_rows_and_columns(v.shape):
        storage.put(state, "rows", v.mean(dim=-1), signed=False)
        storage.put(state, "columns", v.mean(dim=-2), signed=False)
    else:
        storage.put(state, "square", v, signed=False)


def clip(update: Tensor, threshold: float) -> Tensor:
    """Scale an update down to this root mean square, if it has a larger one."""
    return update / (rms(update) / threshold).clamp_(min=1.0)


def rms(values: Tensor) -> Tensor:
    """Return the root mean square, a scalar."""
    return values.square().mean().sqrt()


def step_size(options: Mapping[str, Any], step: int, parameter: Tensor) -> Tensor:
    """Return the factor of the update: lr, or with ``relative_step`` min(1e-2, 1 / sqrt(t)).

    With ``warmup_init``, 1e-6 t replaces 1e-2. With ``scale_parameter``, max(eps[1], RMS(p)) multiplies the result.

    Args:
        options: options of the parameter's group.
        step: number of the step, t, from 1.
        parameter: parameter p, in the precision of the computation.
    """
    rate = options["lr"]
    if options["relative_step"]:
        rate = min(1e-6 * step if options["warmup_init"] else 1e-2, 1 / sqrt(step))
    size = torch.as_tensor(rate, dtype=parameter.dtype, device=parameter.device)
    return size * rms(parameter).clamp_(min=options["eps"][1]) if options["scale_parameter"] else size


def _has_rows_and_columns(shape: Sequence[int]) -> bool:
    # With a side of 1, both factors together would be larger than the tensor.
    return len(shape) >= 2 and min(shape[-2:]) > 1


def _average(state: State, storage: Storage, name: str, value: Tensor, decay: float) -> Tensor:
    before = storage.get(state, name, signed=False)
    after = value if before is None else value.lerp(before, decay)
    storage.put(state, name, after, signed=False)
    return after
