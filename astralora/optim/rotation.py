"""Transform the state that Flora keeps for a weight into other bases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..lowrank.moments import rotate_first_moment, rotate_second_moment
from .adafactor import second_moment, store_second_moment
from .momentum import is_compressed
from .projection import Projection
from .quantization import Storage

__all__ = ["rotate_state"]

State = dict[str, Any]


def rotate_state(
    state: Mapping[str, Any],
    storage: Storage,
    options: Mapping[str, Any],
    shapes: tuple[torch.Size, torch.Size],
    bases: tuple[Tensor, Tensor],
    subspace: Callable[[torch.Size, int, Tensor], Projection],
) -> State:
    """Return the state of a parameter with gradient U^T G V, computed from the state of one with gradient G.

    Args:
        state: state of the old parameter, a matrix with its first axis as rows and all others as columns, (m, n).
        storage: format of both states.
        options: options of the group of both parameters.
        shapes: shape of the old parameter, and of the new one, (r, r).
        bases: U, (m, r), and V, (n, r), with orthonormal columns.
        subspace: function of a matrix shape, the number of a subspace and a tensor; it returns the projection, in the
            tensor's precision.
    """
    (old, new), (left, right) = shapes, (basis.double() for basis in bases)
    after: State = {"step": state["step"]}
    square = second_moment(state, storage)
    if square is not None:
        rotated = rotate_second_moment(square.flatten(1).double(), left, right).to(square)
        store_second_moment(rotated, after, storage, factorize=options["factorize_second_moment"])
    moment = storage.get(state, "moment", signed=True)
    if moment is not None:
        dense, number = moment.double(), state.get("subspace", 0)
        if is_compressed(old, options):
            dense = subspace(old, number, dense).up(dense)
        rotated = rotate_first_moment(dense.flatten(1), left, right)
        if is_compressed(new, options):
            # Use a new subspace: in the old one, the projection would depend on the momentum, and bias it.
            after["subspace"] = number + 1
            rotated = subspace(new, number + 1, rotated).down(rotated)
        storage.put(after, "moment", rotated.to(moment), signed=True)
    return after
