"""Score adapters by zero-cost proxies, before they are trained."""

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
from .temporary_changes import absolute_weights
from .units import Unit

__all__ = [
    "PROXIES",
    "Batch",
    "Loss",
    "Metric",
    "Proxy",
    "default_loss",
    "move_to_device_of",
    "unit_grad_norm",
    "unit_snip",
]

Batch = Mapping[str, Tensor]
"""Keyword arguments of a model's call, labels included."""

Loss = Callable[[nn.Module, Batch], Tensor]
"""Function that computes the loss of a model on a batch."""

Metric = Callable[[nn.Module], float]
"""Function that measures the quality of a model; higher is better."""


def default_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss that models of transformers compute themselves from a batch with labels."""
    loss: Tensor = model(**move_to_device_of(model, batch)).loss
    return loss


def move_to_device_of(model: nn.Module, batch: Batch) -> Batch:
    """Move a batch to the torch device of a model's parameters."""
    device = next(model.parameters()).device
    return {name: value.to(device) for name, value in batch.items()}


class Proxy(ABC):
    """Score every adapter of a model in which all adapters are on.

    Args:
        loss: function that computes the loss of the model on a batch.
        metric: function that measures the quality of the model; minus the mean loss on the batches unless given.
        tolerance: allowed decrease of this quality.
        generator: generator of random numbers.
    """

    begins_at_zero: ClassVar[bool] = False
    """Whether all adapters score 0 while every B is zero."""
    may_tie: ClassVar[bool] = False
    """Whether equal scores cause no warning."""

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
        """Return a score for every adapter, by key; better adapters score higher.

        Args:
            adapted: adapted model with all adapters on; the method may only change what
                `astralora.adapters.temporary_changes.prepared_for_scoring` restores.
            batches: batches of data.
        """


class Constant(Proxy):
    """Score 1 for all adapters, so that the choice is random, for comparison."""

    may_tie = True

    def score(self, adapted: AdaptedModel, _batches: Sequence[Batch]) -> dict[str, float]:
        """Return 1 for every adapter."""
        return {unit.key: 1.0 for unit in adapted.units}


class GradNorm(Proxy):
    """Score ||dL/dA||_F + ||dL/dB||_F, of gradients summed over the batches."""

    def score(self, adapted: AdaptedModel, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the norms, from one backward pass for each batch."""
        totals, excess = _summed_gradients(adapted, batches, self.loss)
        return {
            unit.key: sum(
                max(float(grad.double().square().sum()) - excess.get(id(weight), 0.0), 0.0) ** 0.5
                for weight, grad in zip(unit.weights, totals[unit.key], strict=True)
            )
            for unit in adapted.units
        }


class Snip(Proxy):
    """Score sum |A * dL/dA| + sum |B * dL/dB|, the effect of removing weights on the loss (Lee et al., ICLR 2019)."""

    begins_at_zero = True

    def score(self, adapted: AdaptedModel, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the sums, from one backward pass for each batch."""
        totals, _ = _summed_gradients(adapted, batches, self.loss)
        return {unit.key: _saliency(unit.weights, totals[unit.key]) for unit in adapted.units}


class SynFlow(Proxy):
    """Score as `Snip`, with absolute weights, inputs of ones, and the sum of all outputs as loss.

    It needs no data: the batches only give the length of the inputs. Tanaka et al., NeurIPS 2020.
    """

    begins_at_zero = True

    def score(self, adapted: AdaptedModel, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the scores, from one backward pass."""
        model: Any = adapted.model
        if any(isinstance(module, BlackBoxLinear) for module in model.modules()):
            raise ConfigurationError(
                "'synflow' runs the model with absolute weights, which a device cannot take; use 'grad_norm'"
            )
        embedding = model.get_input_embeddings()
        length = batches[0]["input_ids"].shape[1] if batches else 1
        ones = torch.ones(1, length, embedding.embedding_dim).to(embedding.weight)
        weights = [weight for unit in adapted.units for weight in unit.weights]
        with absolute_weights(model):
            flow = model(inputs_embeds=ones, attention_mask=ones[..., 0]).logits.sum()
            if not bool(torch.isfinite(flow)):
                raise ConfigurationError("'synflow' overflows in this model; use 'grad_norm' or 'snip'")
            gradients = iter(_gradients(flow, weights))
            return {unit.key: _saliency(unit.weights, [next(gradients), next(gradients)]) for unit in adapted.units}


class AlphaTest(Proxy):
    """Score the smallest importance of 0.0, 0.1 ... 1.0 that keeps the quality of the model within a tolerance.

    It is for trained adapters: adapters that the model does not need score 0.
    """

    begins_at_zero = True

    def score(self, adapted: AdaptedModel, batches: Sequence[Batch]) -> dict[str, float]:
        """Return the smallest importances, from up to ten evaluations for each adapter."""

        @torch.no_grad()
        def quality() -> float:
            if self.metric is not None:
                return self.metric(adapted.model)
            return -sum(float(self.loss(adapted.model, batch)) for batch in batches) / max(len(batches), 1)

        required = quality() - self.tolerance
        return {unit.key: self._smallest_importance(unit, required, quality) for unit in adapted.units}

    @staticmethod
    def _smallest_importance(unit: Unit, required: float, quality: Callable[[], float]) -> float:
        importance = unit.importance
        try:
            for tenths in range(10):
                unit.importance = importance * tenths / 10
                if quality() >= required:
                    return tenths / 10
            return 1.0
        finally:
            unit.importance = importance


PROXIES: Table[Proxy] = Table("proxy", Proxy)
"""All proxies by name."""

PROXIES.add("constant", Constant)
PROXIES.add("grad_norm", GradNorm)
PROXIES.add("snip", Snip)
PROXIES.add("synflow", SynFlow)
PROXIES.add("alpha_test", AlphaTest)


def unit_grad_norm(unit: Unit) -> float:
    """Return ||dL/dA||_F + ||dL/dB||_F of the gradients in ``.grad``, without another pass.

    For a factor on a device, the norm of the true gradient is estimated, with the layer's estimator.
    """
    energies = {id(layer.controls): layer.estimator.gradient_energy for layer in unit.devices}
    total = 0.0
    for weight in unit.weights:
        if weight.grad is not None:
            energy = energies.get(id(weight))
            total += float(weight.grad.norm()) if energy is None else max(energy, 0.0) ** 0.5
    return total


def unit_snip(unit: Unit) -> float:
    """Return sum |A * dL/dA| + sum |B * dL/dB| of the gradients in ``.grad``, without another pass."""
    return _saliency(unit.weights, [weight.grad for weight in unit.weights])


def _summed_gradients(
    adapted: AdaptedModel, batches: Sequence[Batch], loss: Loss
) -> tuple[dict[str, list[Tensor]], dict[int, float]]:
    """Sum the gradients of A and B over batches, and the expected noise in the squares of gradients from devices.

    For estimates g_b with independent errors, E |sum g_b|^2 = |sum true g_b|^2 + sum (E |g_b|^2 - |true g_b|^2). The
    last sum is the noise, with |true g_b|^2 from the estimator's ``gradient_energy``.

    Returns:
        The sums by key of the adapter; the noise by id of the controls.
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
                noise = float(grad.double().square().sum()) - layer.estimator.gradient_energy
                excess[id(weight)] = excess.get(id(weight), 0.0) + noise
    pairs = iter(totals)
    return {unit.key: [next(pairs), next(pairs)] for unit in adapted.units}, excess


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
