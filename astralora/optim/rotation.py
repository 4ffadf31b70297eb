"""What Flora remembers of a weight, turned into other bases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..lowrank.moments import rotate_first_moment, rotate_second_moment
from .adafactor import keep_second_moment, second_moment
from .moment import is_compressed
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
    """The state of a parameter whose gradient is U^T G V, from that of one whose gradient is G.

    Args:
        state: of the old parameter, which counts as a matrix of its first axis by all others, (m, n).
        storage: how it is kept, before and after.
        options: of the group of both.
        shapes: of the old parameter, and of the new, (r, r).
        bases: U, (m, r), and V, (n, r), with orthonormal columns.
        subspace: the projection for matrices of a shape, of a number, in the precision of a tensor.
    """
    (old, new), (left, right) = shapes, (basis.double() for basis in bases)
    after: State = {"step": state["step"]}
    square = second_moment(state, storage)
    if square is not None:
        turned = rotate_second_moment(square.flatten(1).double(), left, right).to(square)
        keep_second_moment(turned, after, storage, factorize=options["factorize_second_moment"])
    moment = storage.get(state, "moment", signed=True)
    if moment is not None:
        dense, number = moment.double(), state.get("subspace", 0)
        if is_compressed(old, options):
            dense = subspace(old, number, dense).up(dense)
        turned = rotate_first_moment(dense.flatten(1), left, right)
        if is_compressed(new, options):
            # In a subspace of before, what is turned would depend on the projection that it is to be compressed with.
            after["subspace"] = number + 1
            turned = subspace(new, number + 1, turned).down(turned)
        storage.put(after, "moment", turned.to(moment), signed=True)
    return after
