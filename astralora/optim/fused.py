"""Step parameters inside the backward pass, so that at most one gradient exists at a time."""

from __future__ import annotations

from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..common.errors import ConfigurationError

__all__ = ["FusedBackward", "StepsParameters", "fuse_backward", "parameters_of"]


@runtime_checkable
class StepsParameters(Protocol):
    """Describe an optimizer that can step one parameter alone."""

    param_groups: list[dict[str, Any]]

    def step_parameter(self, parameter: Tensor) -> None:
        """Update one parameter with its gradient."""


def parameters_of(optimizer: StepsParameters) -> set[Tensor]:
    """Return the parameters of all groups."""
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


class FusedBackward:
    """Hold the hooks of `fuse_backward`; remove them by `remove` or at the end of a ``with`` block."""

    def __init__(self, hooks: list[RemovableHandle]) -> None:
        self._hooks = hooks

    def remove(self) -> None:
        """Remove the hooks, so that only ``optimizer.step()`` steps the parameters again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def fuse_backward(model: nn.Module, optimizer: StepsParameters) -> FusedBackward:
    """Step every parameter as soon as its gradient is computed, and free the gradient at once.

    This is LOMO (Lv et al., arXiv 2306.09782) with the optimizer's own update in place of plain gradient descent. The
    results are those of ``optimizer.step()``, since the update of a parameter depends on its own gradient only. The
    training loop does not change: ``optimizer.step()`` then steps only parameters that were frozen when this function
    was called, and a scheduler after it acts on the next backward pass.

    Methods that need all gradients at once do not work with it: clipping by the global norm, loss scaling, accumulation
    over micro-batches (use `GradCompressor.release`), and reentrant checkpointing if several parts use the same
    parameter.

    Args:
        model: model whose parameters are stepped, if they are in the optimizer.
        optimizer: optimizer with ``step_parameter``, such as `Flora`.

    Raises:
        ConfigurationError: the optimizer cannot step one parameter alone, or has no parameter of the model.
    """
    if not isinstance(optimizer, StepsParameters):
        raise ConfigurationError(
            f"{type(optimizer).__name__} cannot step one parameter alone; fuse_backward takes an optimizer with "
            f"step_parameter, such as Flora"
        )
    theirs = parameters_of(optimizer)
    shared = [parameter for parameter in model.parameters() if parameter in theirs and parameter.requires_grad]
    if not shared:
        raise ConfigurationError("the optimizer has no trained parameter of the model; add these parameters to it")

    def step(parameter: Tensor) -> None:
        optimizer.step_parameter(parameter)
        parameter.grad = None

    return FusedBackward([parameter.register_post_accumulate_grad_hook(step) for parameter in shared])
