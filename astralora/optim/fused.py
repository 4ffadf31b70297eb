"""Stepping inside the backward pass, so that no more than one gradient is alive."""

from __future__ import annotations

from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..common.errors import ConfigurationError

__all__ = ["FusedBackward", "StepsParameters", "fuse_backward", "parameters_of"]


@runtime_checkable
class StepsParameters(Protocol):
    """An optimizer that can step one parameter alone."""

    param_groups: list[dict[str, Any]]

    def step_parameter(self, parameter: Tensor) -> None:
        """Update a parameter by its gradient."""


def parameters_of(optimizer: StepsParameters) -> set[Tensor]:
    """All parameters of all groups."""
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


class FusedBackward:
    """What `fuse_backward` returns: ends with `remove`, or with a ``with`` block."""

    def __init__(self, hooks: list[RemovableHandle]) -> None:
        self._hooks = hooks

    def remove(self) -> None:
        """Leave the stepping to ``optimizer.step()`` again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def fuse_backward(model: nn.Module, optimizer: StepsParameters) -> FusedBackward:
    """Let every parameter be stepped as soon as its gradient is there, and free the gradient at once.

    That is LOMO (Lv et al., arXiv 2306.09782) with this optimizer's update in place of plain descent, which is the same
    as without, since no parameter's update asks for another's gradient. The training loop stays as it is:
    ``optimizer.step()`` then finds no gradients but those of parameters that were frozen when this was called, and
    steps them; schedulers that follow it act on the next backward pass.

    What needs all gradients at once has no place here: clipping by the global norm, loss scaling, accumulation over
    micro-batches (see `GradCompressor.release` for that), and reentrant checkpointing of a parameter in several parts.

    Args:
        model: whose parameters are meant, as far as they are the optimizer's.
        optimizer: such as `Flora`.

    Raises:
        ConfigurationError: the optimizer cannot step one parameter alone, or has none of the model's.
    """
    if not isinstance(optimizer, StepsParameters):
        raise ConfigurationError(
            f"{type(optimizer).__name__} cannot step one parameter alone; fuse_backward takes an optimizer with "
            f"step_parameter, such as Flora"
        )
    theirs = parameters_of(optimizer)
    shared = [parameter for parameter in model.parameters() if parameter in theirs and parameter.requires_grad]
    if not shared:
        raise ConfigurationError("the optimizer has none of the parameters that the model trains; give it those first")

    def step(parameter: Tensor) -> None:
        optimizer.step_parameter(parameter)
        parameter.grad = None

    return FusedBackward([parameter.register_post_accumulate_grad_hook(step) for parameter in shared])
