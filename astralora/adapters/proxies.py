"""Zero-cost proxies: what an adapter is worth, before it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..common.table import Table
from ..nn.layer import BlackBoxLinear
from .adapted import AdaptedModel
from .preservation import absolute_weights
from .units import Unit

__all__ = ["PROXIES", "Batch", "Loss", "Metric", "Proxy", "default_loss", "on_device_of", "unit_norm", "unit_snip"]

Batch = Mapping[str, Tensor]
"""What a model is called with, labels included."""

Loss = Callable[[nn.Module, Batch], Tensor]
"""The loss of a model on a batch."""

Metric = Callable[[nn.Module], float]
"""How good a model is; the more the better."""


def default_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that models of transformers work out themselves from a batch with labels."""
    loss: Tensor = model(**on_device_of(model, batch)).loss
    return loss


def on_device_of(model: nn.Module, batch: Batch) -> Batch:
    """A batch where the model's parameters are."""
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


class Proxy(ABC):
    """Scores every adapter of a model in which all are switched on.

    Args:
        loss: of the model on a batch.
        metric: for proxies that ask how good the model is; minus the mean loss on the batches unless given.
        tolerance: by how much that may fall.
        generator: for whatever is random.
    """

    begins_at_zero: ClassVar[bool] = False
    """Says nothing of adapters whose B is zero."""
    may_tie: ClassVar[bool] = False
    """Equal scores are nothing to warn of."""

    def __init__(
        self,
        *,
        loss: Loss = default_loss,
        metric: Metric | None = None,
        tolerance: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        self.loss, self.metric, self.tolerance, self.generator = loss, metric, tolerance, generator

    @abstractmethod
    def score(self, adapted: AdaptedModel, batches: Sequence[Batch]) -> dict[str, float]:
        """A score for every adapter, by key; the higher, the more it deserves.

        Args:
            adapted: the model, all of it switched on; must be left as it is but for what `preserved` puts back.
            batches: data.
        """


class Constant(Proxy):
    """1 for all: a random choice, for comparison."""

    may_tie = True

    def score(self, adapted: AdaptedModel, batches: Sequence[Batch]) -> dict[str, float]:  # noqa: ARG002
        """1 for all."""
        return {unit.key: 1.0 for unit in adapted.units}


class GradNorm(Proxy):
    """||dL/dA||_F + ||dL/dB||_F, of gradients summed over the batches."""

    def score(self, adapted: AdaptedModel, batches: Sequence[Batch]) -> dict[str, float]:
        """From one backward pass for each batch."""
        totals, excess = _summed_gradients(adapted, batches, self.loss)
        return {
            unit.key: sum(
                max(float(grad.double().square().sum()) - excess.get(id(weight), 0.0), 0.0) ** 0.5
                for weight, grad in zip(unit.weights, totals[unit.key], strict=True)
            )
            for unit in adapted.units
        }


class Snip(Proxy):
    """sum |A * dL/dA| + sum |B * dL/dB|: what the loss would change if they were gone (Lee et al., ICLR 2019)."""

    begins_at_zero = True

    def score(self, adapted: AdaptedModel, batches: Sequence[Batch]) -> dict[str, float]:
        """From one backward pass for each batch."""
        totals, _ = _summed_gradients(adapted, batches, self.loss)
        return {unit.key: _saliency(unit.weights, totals[unit.key]) for unit in adapted.units}


class SynFlow(Proxy):
    """Snip of the sum of all outputs, for inputs of ones and weights in absolute value (Tanaka et al., NeurIPS 2020).

    Needs no data: the batches only tell how long the inputs are.
    """

    begins_at_zero = True

    def score(self, adapted: AdaptedModel, batches: Sequence[Batch]) -> dict[str, float]:
        """From one backward pass."""
        model = adapted.model
        if any(isinstance(module, BlackBoxLinear) for module in model.modules()):
            raise ConfigurationError(
                "'synflow' runs the model on weights in absolute value, which a device cannot take; use 'grad_norm'"
            )
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        length = batches[0]["input_ids"].shape[1] if batches else 1
        ones = torch.ones(1, length, embedding.embedding_dim).to(embedding.weight)
        weights = [weight for unit in adapted.units for weight in unit.weights]
        with absolute_weights(model):
            flow = model(inputs_embeds=ones, attention_mask=ones[..., 0]).logits.sum()
            if not bool(torch.isfinite(flow)):
                raise ConfigurationError("'synflow' overflows in this model; use 'grad_norm' or 'snip'")
            found = iter(_gradients(flow, weights))
            return {unit.key: _saliency(unit.weights, [next(found), next(found)]) for unit in adapted.units}


class AlphaTest(Proxy):
    """The smallest importance, among 0.0, 0.1 ... 1.0, at which the model stays as good as it is, to a tolerance.

    For trained adapters: those that can be faded out unnoticed score 0.
    """

    begins_at_zero = True

    def score(self, adapted: AdaptedModel, batches: Sequence[Batch]) -> dict[str, float]:
        """Up to ten evaluations for each adapter."""

        @torch.no_grad()
        def good() -> float:
            if self.metric is not None:
                return self.metric(adapted.model)
            return -sum(float(self.loss(adapted.model, batch)) for batch in batches) / max(len(batches), 1)

        enough = good() - self.tolerance
        return {unit.key: self._least(unit, enough, good) for unit in adapted.units}

    @staticmethod
    def _least(unit: Unit, enough: float, good: Callable[[], float]) -> float:
        whole = unit.importance
        try:
            for tenths in range(10):
                unit.importance = whole * tenths / 10
                if good() >= enough:
                    return tenths / 10
            return 1.0
        finally:
            unit.importance = whole


PROXIES: Table[Proxy] = Table("proxy", Proxy)
"""Every proxy by name."""

PROXIES.add("constant", Constant)
PROXIES.add("grad_norm", GradNorm)
PROXIES.add("snip", Snip)
PROXIES.add("synflow", SynFlow)
PROXIES.add("alpha_test", AlphaTest)


def unit_norm(unit: Unit) -> float:
    """||dL/dA||_F + ||dL/dB||_F of the gradients that training has just left, with nothing asked anew.

    Of a factor on a device it is the norm of the true gradient, as its estimator knows it.
    """
    known = {id(layer.controls): layer.estimator.gradient_energy for layer in unit.devices}
    total = 0.0
    for weight in unit.weights:
        if weight.grad is not None:
            energy = known.get(id(weight))
            total += float(weight.grad.norm()) if energy is None else max(energy, 0.0) ** 0.5
    return total


def unit_snip(unit: Unit) -> float:
    """Sum |A * dL/dA| + sum |B * dL/dB| of the gradients that training has just left."""
    return _saliency(unit.weights, [weight.grad for weight in unit.weights])


def _summed_gradients(
    adapted: AdaptedModel, batches: Sequence[Batch], loss: Loss
) -> tuple[dict[str, list[Tensor]], dict[int, float]]:
    """Gradients of A and B by key, and by how much noise has added to the squares of those on devices.

    With estimates g_b of independent errors, E |sum g_b|^2 exceeds the square of the sum of true gradients by the sum
    of E |g_b|^2 - |true g_b|^2, and both are known.
    """
    weights = [weight for unit in adapted.units for weight in unit.weights]
    totals = [torch.zeros_like(weight) for weight in weights]
    excess: dict[int, float] = {}
    on_device = {id(layer.controls): layer for unit in adapted.units for layer in unit.devices}
    for batch in batches:
        for weight, total, grad in zip(weights, totals, _gradients(loss(adapted.model, batch), weights), strict=True):
            if grad is None:
                continue
            total += grad
            layer = on_device.get(id(weight))
            if layer is not None and layer.estimator.gradient_energy is not None:
                seen = float(grad.double().square().sum()) - layer.estimator.gradient_energy
                excess[id(weight)] = excess.get(id(weight), 0.0) + seen
    found = iter(totals)
    return {unit.key: [next(found), next(found)] for unit in adapted.units}, excess


def _gradients(value: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
    if not weights or not value.requires_grad:
        return [None] * len(weights)
    return torch.autograd.grad(value, weights, allow_unused=True)


def _saliency(weights: Sequence[Tensor], gradients: Sequence[Any]) -> float:
    return sum(
        float((weight.detach() * grad).abs().double().sum())
        for weight, grad in zip(weights, gradients, strict=True)
        if grad is not None
    )
