"""Reduce the variance of a zero-order estimate by the gradient of a model, without adding bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..devices import Differentiable, Session
from .twin import Twin

__all__ = ["ControlVariate"]

# Factor by which each new estimate reduces the weight of earlier estimates.
_MEMORY = 0.9


class ControlVariate:
    """Use the gradient of a twin as a control variate of a zero-order estimate.

    With directions u_k, measured changes d_k, and changes t_k predicted by the twin's gradient h,

        g = mean_k [c_k h + u_k (d_k - c_k t_k)]

    is unbiased for any c_k that does not depend on u_k. The best factor is c = sum d t / sum t^2. Here it is computed
    from earlier estimates. If directions are independent, all samples of this estimate except the k-th are used too.
    It starts at 0. A poor twin gets a small c, so it does not increase the variance.

    Args:
        twin: differentiable model of the device.
    """

    def __init__(self, twin: Differentiable) -> None:
        self._twin = Twin(twin=twin)
        self._products = 0.0  # weighted sums of d t and of t^2
        self._squares = 0.0
        self._earlier = 0.0
        self._shares: list[float] = []
        self._count = 0

    def check(self, session: Session) -> None:
        """Refuse a twin whose size differs from the device's."""
        self._twin.check(session)

    def gradient(
        self, session: Session, controls: Tensor, inputs: Tensor, outputs: Tensor, grad_outputs: Tensor
    ) -> Tensor:
        """Begin a new estimate, and return the twin's gradient h, (num_controls,)."""
        self._products *= _MEMORY
        self._squares *= _MEMORY
        self._shares, self._count = [], 0
        self._earlier = self.share
        return self._twin.estimate(session, controls, inputs, outputs, grad_outputs)

    def remove(self, changes: Tensor, predicted: Tensor, *, leave_one_out: bool) -> Tensor:
        """Return the changes that the twin does not explain, d - c t.

        Args:
            changes: d for each sample and output, (samples, out_features).
            predicted: t for each sample, (samples, 1), or for each sample and output.
            leave_one_out: whether to compute c_k also from the other samples of this estimate; their directions must
                be independent of u_k.
        """
        measured = changes if predicted.shape == changes.shape else changes.sum(dim=1, keepdim=True)
        products = (measured * predicted).sum(dim=1).double()
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
        return measured - shares.to(measured).unsqueeze(1) * predicted

    def restore(self, gradient: Tensor) -> Tensor:
        """Return the mean of c_k h over the samples."""
        return sum(self._shares) / max(self._count, 1) * gradient

    @property
    def share(self) -> float:
        """Return the present factor c."""
        return self._products / self._squares if self._squares else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the sums over earlier estimates."""
        return {"products": self._products, "squares": self._squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._products, self._squares = state["products"], state["squares"]
