"""Change a model for the length of a ``with`` block, and restore it afterwards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .adapted import AdaptedModel
from .random_state import isolated_random_state

__all__ = ["absolute_weights", "prepared_for_scoring"]


@contextmanager
def prepared_for_scoring(
    adapted: AdaptedModel, *, perturb: float = 0.0, generator: torch.Generator | None = None
) -> Iterator[None]:
    """Switch all adapters on and the model to evaluation mode in a ``with`` block, and restore the model afterwards.

    At the end, weights and switches of the adapters, gradients, buffers, training modes, the extra state of device
    layers, and the global random state are restored bit for bit. The block must not change anything else.

    Args:
        adapted: adapted model.
        perturb: standard deviation of normal noise that is added to every B in the block.
        generator: generator of this noise.
    """
    model, units = adapted.model, adapted.units
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    extra = {module: copy.deepcopy(state) for module in model.modules() if (state := _extra_state(module)) is not None}
    switches = {unit.key: unit.enabled for unit in units}
    importances = {unit.key: unit.importance for unit in units}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    weights = [(weight, weight.detach().clone()) for unit in units for weight in unit.weights]
    try:
        with isolated_random_state():
            model.eval()
            adapted.set_enabled(True)
            if perturb:
                for unit in units:
                    _perturb(unit.factors[1], unit.weights[1], perturb, generator)
            yield
    finally:
        with torch.no_grad():
            for weight, value in weights:
                weight.copy_(value)
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        adapted.set_enabled(switches)
        for unit in units:
            unit.importance = importances[unit.key]
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, state in extra.items():
            module.set_extra_state(state)
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def absolute_weights(model: nn.Module) -> Iterator[None]:
    """Replace all weights by their absolute values in a ``with`` block, and restore their signs afterwards."""
    negative = [(parameter, parameter.detach().signbit()) for parameter in model.parameters()]
    try:
        with torch.no_grad():
            for parameter, _ in negative:
                parameter.abs_()
        yield
    finally:
        with torch.no_grad():
            for parameter, sign in negative:
                # This also restores the sign of a zero.
                parameter.copy_(torch.where(sign, -parameter, parameter))


def _extra_state(module: nn.Module) -> Any:
    return None if type(module).get_extra_state is nn.Module.get_extra_state else module.get_extra_state()


@torch.no_grad()
def _perturb(factor: nn.Module, weight: torch.Tensor, std: float, generator: torch.Generator | None) -> None:
    if not isinstance(factor, nn.Linear):
        return  # controls of a device do not start at zero
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    weight.add_(noise.to(weight), alpha=std)
