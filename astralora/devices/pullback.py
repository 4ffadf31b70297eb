"""Compute gradients of a differentiable law."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .capabilities import Differentiable, PullsBack, capability_of

__all__ = ["pull_back", "pull_back_answer"]


def pull_back(
    law: Differentiable,
    controls: Tensor,
    inputs: Tensor,
    grad_outputs: Tensor,
    *,
    by_controls: bool = True,
    by_inputs: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of a law with respect to controls and inputs in the cheapest way; see `PullsBack.vjp`."""
    direct = capability_of(law, PullsBack)
    if direct is not None:
        return direct.vjp(controls, inputs, grad_outputs, by_controls=by_controls, by_inputs=by_inputs)
    wanted = {"by_controls": by_controls, "by_inputs": by_inputs}
    return pull_back_answer(law.transfer, controls, inputs, grad_outputs, **wanted)


def pull_back_answer(
    transfer: Callable[[Tensor, Tensor], Tensor],
    controls: Tensor,
    inputs: Tensor,
    grad_outputs: Tensor,
    *,
    by_controls: bool = True,
    by_inputs: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute the gradients of ``transfer(controls, inputs)`` by autograd; see `PullsBack.vjp`."""
    with torch.enable_grad():
        w, x = controls.detach().requires_grad_(by_controls), inputs.detach().requires_grad_(by_inputs)
        answer = transfer(w, x)
    found = iter(torch.autograd.grad(answer, [leaf for leaf in (w, x) if leaf.requires_grad], grad_outputs))
    by_control, by_input = (next(found) if wanted else None for wanted in (by_controls, by_inputs))
    return by_control, by_input
