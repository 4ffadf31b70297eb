"""A model's gradient as a control variate: used as far as it is right, and never to the estimate's bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..devices import Differentiable, Session
from .twin import Twin

__all__ = ["ControlVariate"]

# What earlier estimates have taught counts this much less with each new one.
_MEMORY = 0.9


class ControlVariate:
    """Takes what a twin predicts off the changes that a device shows, and its gradient back in afterwards.

    With directions u_k, changes d_k of the device and t_k predicted by the twin's gradient h,

        g = mean_k [c_k h + u_k (d_k - c_k t_k)]

    has the gradient as its mean for any c_k that does not depend on u_k. The best is c = sum d t / sum t^2: here from
    earlier estimates and, where directions are independent, from all samples of this one but the k-th. It starts at
    0. A poor twin gets a small c, and harms nothing.

    Args:
        twin: the model.
    """

    def __init__(self, twin: Differentiable) -> None:
        self._twin = Twin(twin=twin)
        self._products = 0.0  # remembered sums of d t and of t^2
        self._squares = 0.0
        self._earlier = 0.0
        self._shares: list[float] = []
        self._count = 0

    def check(self, session: Session) -> None:
        """Refuse a twin of another shape than the device's."""
        self._twin.check(session)

    def gradient(
        self, session: Session, controls: Tensor, inputs: Tensor, outputs: Tensor, grad_outputs: Tensor
    ) -> Tensor:
        """The twin's gradient h, as a new estimate begins: (num_controls,)."""
        self._products *= _MEMORY
        self._squares *= _MEMORY
        self._shares, self._count = [], 0
        self._earlier = self.share
        return self._twin.estimate(session, controls, inputs, outputs, grad_outputs)

    def remove(self, changes: Tensor, predicted: Tensor, *, leave_one_out: bool) -> Tensor:
        """What the twin does not explain: d - c t.

        Args:
            changes: d by sample and output, (samples, out_features).
            predicted: t by sample, (samples, 1), or by sample and output.
            leave_one_out: learn c from the other samples too, whose directions are independent of each one's own.
        """
        seen = changes if predicted.shape == changes.shape else changes.sum(dim=1, keepdim=True)
        products = (seen * predicted).sum(dim=1).double()
        squares = predicted.square().sum(dim=1).double()
        self._products += float(products.sum())
        self._squares += float(squares.sum())
        if leave_one_out:
            others = self._squares - squares
            shares = torch.where(others > 0, (self._products - products) / others.clamp_min(1e-300), 0.0)
        else:
            shares = torch.full_like(products, self._earlier)
        self._shares.append(float(shares.sum()))
        self._count += len(shares)
        return seen - shares.to(seen).unsqueeze(1) * predicted

    def restore(self, gradient: Tensor) -> Tensor:
        """The mean of c h."""
        return sum(self._shares) / max(self._count, 1) * gradient

    @property
    def share(self) -> float:
        """How much of the twin is believed at present, c."""
        return self._products / self._squares if self._squares else 0.0

    def state_dict(self) -> dict[str, Any]:
        """What earlier estimates have taught."""
        return {"products": self._products, "squares": self._squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self._products, self._squares = state["products"], state["squares"]
