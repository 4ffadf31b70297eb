"""The parts of Adafactor: second moments in rows and columns, clipped updates, relative step sizes."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from .quantization import Storage

__all__ = ["clip", "keep_second_moment", "precondition", "rms", "second_moment", "step_size"]

State = MutableMapping[str, Any]


def precondition(grad: Tensor, state: State, storage: Storage, *, beta2: float, eps: float, factorize: bool) -> Tensor:
    """Divide a gradient by the root of its averaged square, g / sqrt(v).

        V <- beta2 V + (1 - beta2) (g^2 + eps)

    kept entry by entry or, factorised, as the means R of its rows and C of its columns alone, from which
    v_ij = R_i C_j / mean(R) (Shazeer and Stern, arXiv 1804.04235, algorithm 4). Of more than two axes the last two
    count as rows and columns.

    Args:
        grad: g, in the precision to compute in.
        state: of the parameter; the averages in it are replaced.
        storage: how it keeps them.
        beta2: decay of the averages; 0 in the first step.
        eps: added to every square.
        factorize: keep rows and columns where that is smaller.
    """
    square = grad.square().add_(eps)
    if not (factorize and _has_rows_and_columns(grad.shape)):
        return grad * _average(state, storage, "square", square, beta2).rsqrt()
    rows = _average(state, storage, "rows", square.mean(dim=-1), beta2)
    columns = _average(state, storage, "columns", square.mean(dim=-2), beta2)
    row_factor = (rows / rows.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
    return grad * row_factor * columns.rsqrt().unsqueeze(-2)


def second_moment(state: Mapping[str, Any], storage: Storage) -> Tensor | None:
    """The averages v of every entry, in the shape of the parameter: as kept, or R_i C_j / mean(R)."""
    rows, columns = (storage.get(state, name, signed=False) for name in ("rows", "columns"))
    if rows is None or columns is None:
        return storage.get(state, "square", signed=False)
    return (rows / rows.mean(dim=-1, keepdim=True)).unsqueeze(-1) * columns.unsqueeze(-2)


def keep_second_moment(v: Tensor, state: State, storage: Storage, *, factorize: bool) -> None:
    """Keep v, of every entry, as `precondition` does: whole, or the means of its rows and columns."""
    if factorize and _has_rows_and_columns(v.shape):
        storage.put(state, "rows", v.mean(dim=-1), signed=False)
        storage.put(state, "columns", v.mean(dim=-2), signed=False)
    else:
        storage.put(state, "square", v, signed=False)


def clip(update: Tensor, threshold: float) -> Tensor:
    """Scale an update down, where it is larger, to this root mean square."""
    return update / (rms(update) / threshold).clamp_(min=1.0)


def rms(values: Tensor) -> Tensor:
    """Root mean square, a scalar."""
    return values.square().mean().sqrt()


def step_size(options: Mapping[str, Any], step: int, parameter: Tensor) -> Tensor:
    """What the update is multiplied by: lr, or with ``relative_step`` min(1e-2, 1 / sqrt(t)).

    With ``warmup_init`` the 1e-2 is 1e-6 t; with ``scale_parameter`` all of it is in units of max(eps[1], RMS(p)).

    Args:
        options: of the parameter's group.
        step: t, from 1.
        parameter: p, in the precision to compute in.
    """
    rate = options["lr"]
    if options["relative_step"]:
        rate = min(1e-6 * step if options["warmup_init"] else 1e-2, 1 / sqrt(step))
    size = torch.as_tensor(rate, dtype=parameter.dtype, device=parameter.device)
    return size * rms(parameter).clamp_(min=options["eps"][1]) if options["scale_parameter"] else size


def _has_rows_and_columns(shape: Sequence[int]) -> bool:
    # A side of 1 has nothing to average over: both factors together would be larger than all entries.
    return len(shape) >= 2 and min(shape[-2:]) > 1


def _average(state: State, storage: Storage, name: str, value: Tensor, decay: float) -> Tensor:
    before = storage.get(state, name, signed=False)
    after = value if before is None else value.lerp(before, decay)
    storage.put(state, name, after, signed=False)
    return after
