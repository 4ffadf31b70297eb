"""Add low-rank shortcuts to the skip connections of transformer layers."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import TransformerLayer
from .config import Resolved

__all__ = ["Projector", "Shortcuts"]


class Projector(nn.Module):
    """Compute the output of a shortcut, importance * alpha / r * B A x, which is zero before training.

    Args:
        width: number of features of x, d.
        options: rank r, alpha, dropout and importance.
        generator: generator of A; B starts at zero.

    Shape:
        (..., width) -> (..., width).
    """

    def __init__(self, width: int, options: Resolved, generator: torch.Generator) -> None:
        super().__init__()
        self.rank, self.alpha = options.rank, options.alpha
        self.importance = options.importance
        self.enabled = True
        self.dropout = nn.Dropout(options.dropout)
        self.A = nn.utils.skip_init(nn.Linear, width, options.rank, bias=False)
        self.B = nn.utils.skip_init(nn.Linear, options.rank, width, bias=False)
        bound = 1 / sqrt(width)  # as nn.Linear and peft do
        with torch.no_grad():
            self.A.weight.uniform_(-bound, bound, generator=generator)
            self.B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled low-rank product."""
        product: Tensor = self.B(self.A(self.dropout(x)))
        return product * (self.importance * self.alpha / self.rank)


class Shortcuts(nn.Module):
    """Add the outputs of shortcuts to one transformer layer, by hooks.

    With x the layer's input, h the input of its feed-forward part, and p the h of the previous layer:

        h = residual1(x) + attention(x) + shortcut2(p)
        y = residual2(h) + feed_forward(h) + shortcut1(x)

    residual1 and residual2 are the identity plus a projector; shortcut1 and shortcut2 are projectors. Before training,
    the layer computes the same outputs as without them. The hooks act on the two sums of the layer's skip connections.
    In a layer that normalises after a sum, shortcuts are added before the normalisation.

    In a layer that normalises first, h is the input of the normalisation and of the skip connection, which has no hook.
    Outputs that belong to h are therefore added twice: before the normalisation, and at the end of the layer.

    Args:
        layer: layer that gets the hooks.
        projectors: projectors by name, up to four.
        before: hooks of the previous layer, if any.
    """

    def __init__(self, layer: TransformerLayer, projectors: Mapping[str, Projector], before: Shortcuts | None) -> None:
        super().__init__()
        for name, projector in projectors.items():
            self.add_module(name, projector)
        # A tuple, so that the shortcuts of the previous layer do not become a submodule.
        self._before = (before,)
        self.feeds_next = False
        if before is not None and "shortcut2" in projectors:
            before.feeds_next = True
        self._normalises_first = layer.output_norm is None
        self._input: Tensor | None = None
        self._added: Tensor | None = None
        self._h: Tensor | None = None  # until the next layer reads it
        layer.module.register_forward_pre_hook(self._store_input, with_kwargs=True)
        layer.attention_norm.register_forward_pre_hook(self._add_to_first_sum)
        if layer.output_norm is None:
            layer.module.register_forward_hook(self._add_to_output)
        else:
            layer.attention_norm.register_forward_hook(self._store_normalised_h)
            layer.output_norm.register_forward_pre_hook(self._add_to_second_sum)

    def take_h(self) -> Tensor | None:
        """Return h of the present pass for the next layer, and release it."""
        h, self._h = self._h, None
        return h

    def _store_input(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._input = args[0] if args else kwargs["hidden_states"]
        self._h = None

    def _add_to_first_sum(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        (total, *rest) = args
        (before,) = self._before
        previous_h = None if before is None else before.take_h()  # None also after a dropped layer
        self._added = _sum(self._project("residual1", self._input), self._project("shortcut2", previous_h))
        if self._added is not None:
            total = total + self._added.reshape(total.shape)
        if self._normalises_first:
            self._h = total
        return (total, *rest)

    def _store_normalised_h(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self._h = output

    def _add_to_second_sum(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        (total, *rest) = args
        added = self._second_sum()
        self._release()
        return (total if added is None else total + added.reshape(total.shape), *rest)

    def _add_to_output(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Add the shortcuts of both sums to the output of a layer that normalises first."""
        added = _sum(self._added, self._second_sum())
        self._release()
        if added is None:
            return output
        if isinstance(output, tuple):
            return (output[0] + added.reshape(output[0].shape), *output[1:])
        return output + added.reshape(output.shape)

    def _second_sum(self) -> Tensor | None:
        return _sum(self._project("residual2", self._h), self._project("shortcut1", self._input))

    def _release(self) -> None:
        # A stored tensor keeps the whole graph of a pass alive.
        self._input = self._added = None
        if not self.feeds_next:
            self._h = None

    def _project(self, name: str, x: Tensor | None) -> Tensor | None:
        projector = self._modules.get(name)
        if x is None or projector is None or not projector.enabled:
            return None
        added: Tensor = projector(x)
        return added


def _sum(*parts: Tensor | None) -> Tensor | None:
    total: Tensor | None = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part.reshape(total.shape)
    return total
