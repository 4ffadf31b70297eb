"""Fit the constants of a law by gradient descent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import cos, pi

import torch
from torch import Tensor

from ..devices import Constant, DeviceSpec, Identifiable, derive_generator
from .evaluation import law_outputs, unsaturated_mask
from .pairs import Pairs
from .prior import improbability

__all__ = ["Descent"]

Constants = dict[str, Tensor]


class Descent:
    """Minimise the negative log posterior from one start.

    Args:
        model: law to fit.
        declared: constants of the law.
        pairs: pairs to fit.
        spec: spec of the chip.
        noise: noise of an answer.
        seed: seed of subsets and starts.
        start: number of the start; 0 starts from the nominal constants.

    Attributes:
        residual: moving average of the mean squared residual in units of the noise.
    """

    residual = float("inf")

    def __init__(
        self,
        model: Identifiable,
        declared: Mapping[str, Constant],
        pairs: Pairs,
        spec: DeviceSpec,
        noise: float,
        seed: int,
        start: int,
    ) -> None:
        self._model, self._declared, self._pairs, self._noise = model, declared, pairs, noise
        self._generator = derive_generator(seed, "identification", start)
        self._spec = spec
        # In units of each constant's spread, so that one step size suits all.
        self._scaled = {name: torch.zeros(constant.shape) for name, constant in declared.items()}
        if start:
            for value in self._scaled.values():
                value.normal_(std=0.5, generator=self._generator)
        for value in self._scaled.values():
            value.requires_grad_()

    def constants(self) -> Constants:
        """Return the current constants by name."""
        with torch.no_grad():
            return {name: value.clone() for name, value in self._unscaled().items()}

    def begin(self, constants: Constants) -> None:
        """Set the current constants."""
        with torch.no_grad():
            for name, scaled in self._scaled.items():
                known = self._declared[name]
                scaled.copy_((constants[name] - known.nominal) / known.spread)

    def descend(self, steps: int, rate: float, listener: Callable[[int, int, float], None] | None) -> None:
        """Run Adam on random subsets of the settings, with a step size that falls along a cosine."""
        leaves = list(self._scaled.values())
        optimizer = torch.optim.Adam(leaves, lr=rate, betas=(0.9, 0.99))
        count = len(self._pairs.settings)
        subset = max(1, (count + 2) // 3)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1e-3 + (1 - 1e-3) * (1 + cos(pi * step / steps)) / 2)
            chosen = torch.randperm(count, generator=self._generator)[:subset]
            optimizer.zero_grad()
            loss, residual = self._loss(chosen)
            loss.backward()
            optimizer.step()
            self.residual = residual if step == 0 else self.residual + 0.1 * (residual - self.residual)
            if listener is not None:
                listener(step + 1, steps, self.residual)

    def polish(self, iterations: int = 20) -> None:
        """Run L-BFGS on all settings; keep the constants if it diverges."""
        optimizer = torch.optim.LBFGS(
            list(self._scaled.values()), max_iter=iterations, history_size=20, line_search_fn="strong_wolfe"
        )
        everything = torch.arange(len(self._pairs.settings))

        def closure() -> float:
            optimizer.zero_grad()
            total = 0.0
            # Use parts of the size of a step, since a deep mesh keeps the state of every column for the gradient.
            for part in everything.split(max(1, (len(everything) + 2) // 3)):
                loss, _ = self._loss(part)
                loss.backward()
                total += float(loss.detach())
            return total

        before = {name: value.detach().clone() for name, value in self._scaled.items()}
        optimizer.step(closure)
        if not all(bool(torch.isfinite(value).all()) for value in self._scaled.values()):
            with torch.no_grad():
                for name, value in self._scaled.items():
                    value.copy_(before[name])

    def _loss(self, chosen: Tensor) -> tuple[Tensor, float]:
        """Return the loss of some settings, and their mean squared residual in units of the noise.

        The loss is the negative log posterior of these settings, divided by the number of all answers. The mean
        excludes saturated answers.
        """
        pairs, constants = self._pairs, self._unscaled()
        answers, measured = law_outputs(self._model, constants, pairs, chosen), pairs.outputs[chosen]
        valid = unsaturated_mask(measured, answers.detach(), self._spec, self._noise)
        squares = ((answers - measured).square() * valid).sum() / self._noise**2
        penalty = sum(improbability(value).sum() for value in self._scaled.values())
        total = pairs.outputs.numel()
        share = len(chosen) / len(pairs.settings)
        return (squares + share * penalty) / total, float(squares.detach() / valid.sum().clamp_min(1))

    def _unscaled(self) -> Constants:
        """Return the constants in their own units, within their bounds."""
        constants = {}
        for name, scaled in self._scaled.items():
            known = self._declared[name]
            constants[name] = (known.nominal + known.spread * scaled).clamp(known.low, known.high)
        return constants
