"""Transform the state that an optimizer keeps for a weight into other bases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn, optim

from ..common.errors import ConfigurationError

__all__ = [
    "RotatesMoments",
    "check_moments",
    "replace_parameter",
    "rotate_first_moment",
    "rotate_moments",
    "rotate_second_moment",
]


@runtime_checkable
class RotatesMoments(Protocol):
    """Describe an optimizer that transforms its own state, because it does not keep one tensor for each moment."""

    def rotate_moments(self, old: nn.Parameter, new: nn.Parameter, left: Tensor, right: Tensor) -> None:
        """Transform the state of a parameter with gradient G into the state of another with gradient left^T G right.

        Args:
            old: parameter with the state, no longer in a group; its gradient G counts as a matrix, with its first axis
                as rows and all others as columns.
            new: parameter that has already replaced it in its group; may be the same.
            left: (m, r), with orthonormal columns.
            right: (n, r), with orthonormal columns.
        """


def rotate_first_moment(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return U^T m V: averages of gradients transform like gradients."""
    return left.mT @ moment @ right


def rotate_second_moment(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return (U * U)^T v (V * V), the expected square of U^T g V for uncorrelated entries of g with E g^2 = v.

    A diagonal second moment has no information on the correlations of the entries. The result stays positive. A full
    rotation does not change the sum of all entries, and a constant moment stays the same.
    """
    return left.square().mT @ moment @ right.square()


_MOMENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "momentum_buffer": rotate_first_moment,  # SGD, RMSprop, Muon
    "exp_avg": rotate_first_moment,  # Adam, AdamW, NAdam, RAdam, Adamax
    "grad_avg": rotate_first_moment,  # RMSprop
    "exp_avg_sq": rotate_second_moment,
    "max_exp_avg_sq": rotate_second_moment,
    "square_avg": rotate_second_moment,  # RMSprop, Adadelta
    "acc_delta": rotate_second_moment,  # Adadelta
    "sum": rotate_second_moment,  # Adagrad
}


def check_moments(optimizer: optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse an optimizer whose state of these parameters cannot be transformed.

    Raises:
        ConfigurationError: the state has an entry of an unknown kind, which the message names.
    """
    if isinstance(optimizer, RotatesMoments):
        return
    for parameter in parameters:
        for name, value in optimizer.state.get(parameter, {}).items():
            if not (_is_unaffected(name, value) or _is_moment(name, value, parameter)):
                kind = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                raise ConfigurationError(
                    f"{type(optimizer).__name__} keeps {name!r} ({kind}) for a weight of shape "
                    f"{tuple(parameter.shape)}, which cannot be transformed into other bases; use SGD, Adam, AdamW or "
                    f"Flora, or give the optimizer a method rotate_moments(old, new, left, right)"
                )


def replace_parameter(optimizer: optim.Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    """Replace a parameter by another in its group, and move or drop its state.

    The state is dropped if its moments have the shape of the old parameter, and the new one has another shape.
    Otherwise it is moved unchanged: for example, it may have been loaded for the new shape.
    """
    _replace_in_groups(optimizer, old, new)
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        if old.shape == new.shape or not any(_is_moment(name, value, old) for name, value in state.items()):
            optimizer.state[new] = state


@torch.no_grad()
def rotate_moments(
    optimizer: optim.Optimizer, old: nn.Parameter, new: nn.Parameter, left: Tensor, right: Tensor
) -> None:
    """Replace a parameter by one whose gradient is left^T G right, and transform its state in the same way.

    First moments transform exactly, so that momentum continues without a change. Second moments of single entries
    transform as for uncorrelated entries; see `rotate_second_moment`.

    Args:
        optimizer: optimizer that `check_moments` has accepted.
        old: parameter with gradient G, a matrix with the first axis as rows and all others as columns, (m, n).
        new: parameter that replaces it, (r, r); may be the same.
        left: (m, r), with orthonormal columns.
        right: (n, r), with orthonormal columns.
    """
    if old is not new:
        _replace_in_groups(optimizer, old, new)
    if isinstance(optimizer, RotatesMoments):
        optimizer.rotate_moments(old, new, left, right)
        return
    if old not in optimizer.state:
        return
    state: dict[str, Any] = optimizer.state.pop(old)
    left, right = left.double(), right.double()
    for name, value in state.items():
        if _is_moment(name, value, old):
            matrix = value.detach().flatten(1).double()
            state[name] = _MOMENTS[name](matrix, left, right).to(value).contiguous()
    optimizer.state[new] = state


def _replace_in_groups(optimizer: optim.Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]


def _is_unaffected(name: str, value: Any) -> bool:
    """Report whether an entry does not depend on the bases, such as a step counter."""
    return value is None or (name not in _MOMENTS and (not isinstance(value, Tensor) or value.numel() <= 1))


def _is_moment(name: str, value: Any, parameter: Tensor) -> bool:
    if name not in _MOMENTS or not isinstance(value, Tensor):
        return False
    return bool(value.shape == parameter.shape and value.is_floating_point())
