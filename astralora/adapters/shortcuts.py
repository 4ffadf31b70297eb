"""Low-rank shortcuts beside a transformer layer's own skips."""

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
    """What a shortcut adds to the stream: importance * alpha / r * B A x, which is zero to begin with.

    Args:
        width: of the stream, d.
        options: rank r, alpha, dropout and importance.
        generator: draws A; B is zero.

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
        """The low-rank product, scaled."""
        product: Tensor = self.B(self.A(self.dropout(x)))
        return product * (self.importance * self.alpha / self.rank)


class Shortcuts(nn.Module):
    """The shortcuts of one transformer layer, hooked into it.

    With x the layer's input, h what its feed-forward part starts from, and p the h of the layer before:

        h = residual1(x) + attention(x) + shortcut2(p)
        y = residual2(h) + feed_forward(h) + shortcut1(x)

    residual1 and residual2 are the identity plus a projector, shortcut1 and shortcut2 projectors: the layer begins as
    it was. The sums are those that the layer's skips go into; where it normalises behind them, behind these.

    In a layer that normalises first, h goes two ways, into the normalisation and along the skip, and the skip cannot be
    hooked: what is added to h is added in front of the normalisation, and once more at the end.

    Args:
        layer: to hook into.
        projectors: by name, those of the four that are there.
        before: the shortcuts of the layer before, if any.
    """

    def __init__(self, layer: TransformerLayer, projectors: Mapping[str, Projector], before: Shortcuts | None) -> None:
        super().__init__()
        for name, projector in projectors.items():
            self.add_module(name, projector)
        # No submodule of this layer, but of the one before.
        self._before = (before,)
        self._feeds_next = False
        if before is not None and "shortcut2" in projectors:
            before._feeds_next = True
        self._normalises_first = layer.output_norm is None
        self._input: Tensor | None = None
        self._added: Tensor | None = None
        self._stream: Tensor | None = None  # h, until the next layer has taken it
        layer.module.register_forward_pre_hook(self._enter, with_kwargs=True)
        layer.attention_norm.register_forward_pre_hook(self._after_attention)
        if layer.output_norm is None:
            layer.module.register_forward_hook(self._leave)
        else:
            layer.attention_norm.register_forward_hook(self._normalised)
            layer.output_norm.register_forward_pre_hook(self._after_feed_forward)

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._input = args[0] if args else kwargs["hidden_states"]
        self._stream = None

    def _after_attention(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """In front of the normalisation behind the first sum."""
        (total, *rest) = args
        (before,) = self._before
        # A layer that was dropped has left nothing.
        stream = None if before is None else before._take()
        self._added = _sum(self._project("residual1", self._input), self._project("shortcut2", stream))
        if self._added is not None:
            total = total + self._added.reshape(total.shape)
        if self._normalises_first:
            self._stream = total
        return (total, *rest)

    def _normalised(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self._stream = output

    def _after_feed_forward(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """In front of the normalisation behind the second sum."""
        (total, *rest) = args
        added = self._second_sum()
        self._forget()
        return (total if added is None else total + added.reshape(total.shape), *rest)

    def _leave(self, _: nn.Module, __: Any, output: Any) -> Any:
        """Behind the second sum, of a layer that normalises first."""
        added = _sum(self._added, self._second_sum())
        self._forget()
        if added is None:
            return output
        if isinstance(output, tuple):
            return (output[0] + added.reshape(output[0].shape), *output[1:])
        return output + added.reshape(output.shape)

    def _second_sum(self) -> Tensor | None:
        return _sum(self._project("residual2", self._stream), self._project("shortcut1", self._input))

    def _forget(self) -> None:
        # What is kept of a pass keeps its whole graph.
        self._input = self._added = None
        if not self._feeds_next:
            self._stream = None

    def _take(self) -> Tensor | None:
        stream, self._stream = self._stream, None
        return stream

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
