"""What an optimizer remembers of a weight, carried over into other bases."""

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
    "rotate_moments",
    "turn_first_moment",
    "turn_second_moment",
]


@runtime_checkable
class RotatesMoments(Protocol):
    """An optimizer that carries its state over by itself: of those whose state is not a tensor for each moment."""

    def rotate_moments(self, old: nn.Parameter, new: nn.Parameter, left: Tensor, right: Tensor) -> None:
        """Turn the state of one parameter into that of another, whose gradient is left^T G right.

        Args:
            old: the parameter that the state is about, whose gradient G counts as a matrix of its first axis by all
                others; in a group no more.
            new: takes its place in its group already; may be the same.
            left: (m, r), with orthonormal columns.
            right: (n, r), with orthonormal columns.
        """


def turn_first_moment(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """U^T m V: averages of gradients turn like gradients."""
    return left.mT @ moment @ right


def turn_second_moment(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(U * U)^T v (V * V), the expected square of U^T g V for entries of g that are uncorrelated, with E g^2 = v.

    Which correlations there were, a diagonal second moment does not say. Of all that could be put in its place this one
    stays positive, keeps the sum of all entries in a full rotation, and leaves a moment that is constant as it is.
    """
    return left.square().mT @ moment @ right.square()


_MOMENTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "momentum_buffer": turn_first_moment,  # SGD, RMSprop, Muon
    "exp_avg": turn_first_moment,  # Adam, AdamW, NAdam, RAdam, Adamax
    "grad_avg": turn_first_moment,  # RMSprop
    "exp_avg_sq": turn_second_moment,
    "max_exp_avg_sq": turn_second_moment,
    "square_avg": turn_second_moment,  # RMSprop, Adadelta
    "acc_delta": turn_second_moment,  # Adadelta
    "sum": turn_second_moment,  # Adagrad
}


def check_moments(optimizer: optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse an optimizer whose memory of these parameters cannot be carried over.

    Raises:
        ConfigurationError: names what it remembers that is not known.
    """
    if isinstance(optimizer, RotatesMoments):
        return
    for parameter in parameters:
        for name, value in optimizer.state.get(parameter, {}).items():
            if not (_is_kept(name, value) or _is_moment(name, value, parameter)):
                kind = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                raise ConfigurationError(
                    f"{type(optimizer).__name__} remembers {name!r} ({kind}) of a weight of shape "
                    f"{tuple(parameter.shape)}, and nothing is known of how that turns with a basis; use SGD, Adam, "
                    f"AdamW or Flora, or give the optimizer a method rotate_moments(old, new, left, right)"
                )


def replace_parameter(optimizer: optim.Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    """Put a parameter in the place of another in its group, and under its name.

    State that was loaded before is the new one's already, and is moved as it is. What is remembered of the old one is
    of no use to a parameter of another shape, and is forgotten.
    """
    _follow(optimizer, old, new)
    if old in optimizer.state:
        state = optimizer.state.pop(old)
        if old.shape == new.shape or not any(_is_moment(name, value, old) for name, value in state.items()):
            optimizer.state[new] = state


@torch.no_grad()
def rotate_moments(
    optimizer: optim.Optimizer, old: nn.Parameter, new: nn.Parameter, left: Tensor, right: Tensor
) -> None:
    """Replace a parameter by one whose gradient is left^T G right, and turn what is remembered of it likewise.

    First moments turn exactly: a momentum goes on as if nothing had happened. Second moments that are kept entry by
    entry turn as those of uncorrelated entries; see `turn_second_moment`.

    Args:
        optimizer: has been checked by `check_moments`.
        old: its gradient G counts as a matrix of its first axis by all others, (m, n).
        new: (r, r); may be the same.
        left: (m, r), with orthonormal columns.
        right: (n, r), with orthonormal columns.
    """
    if old is not new:
        _follow(optimizer, old, new)
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


def _follow(optimizer: optim.Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]


def _is_kept(name: str, value: Any) -> bool:
    """Counters and the like."""
    return value is None or (name not in _MOMENTS and (not isinstance(value, Tensor) or value.numel() <= 1))


def _is_moment(name: str, value: Any, parameter: Tensor) -> bool:
    if name not in _MOMENTS or not isinstance(value, Tensor):
        return False
    return bool(value.shape == parameter.shape and value.is_floating_point())
