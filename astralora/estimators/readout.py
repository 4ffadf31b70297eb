"""Choose the vectors to send, and compute the change of the loss by each output from the answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from ..devices import DeviceSpec, Session
from ..probing.probes import LinearProbe, answer_variance

__all__ = ["Compression", "Readout", "choose_readout"]

Compression = Literal["singular", "rows", "none"]


class Readout(ABC):
    """Measure <f_w(X), G>, summed over the batch but separate for each output, at many settings w.

    Attributes:
        vectors: number of vectors for one setting.
        measures_base: whether the value at the unperturbed controls must be measured too.
    """

    vectors: int
    measures_base: bool

    @abstractmethod
    def base(self, session: Session) -> Tensor:
        """Return the value at the present controls of the device, (out_features,)."""

    @abstractmethod
    def each(self, session: Session, settings: Tensor) -> Tensor:
        """Measure the values at several settings: (settings, num_controls) -> (settings, out_features)."""

    @abstractmethod
    def variance(self) -> float:
        """Return the noise variance of one measurement, summed over the outputs."""


class Batch(Readout):
    """Send the batch itself; the forward pass provides its answer at the unperturbed controls."""

    measures_base = False

    def __init__(self, spec: DeviceSpec, inputs: Tensor, outputs: Tensor, grad_outputs: Tensor) -> None:
        self.vectors = len(inputs)
        self._variance = answer_variance(spec)
        self._inputs, self._outputs, self._grad = inputs, outputs, grad_outputs

    def base(self, session: Session) -> Tensor:
        """Return the value from the forward pass."""
        return (self._outputs * self._grad).sum(dim=0)

    def each(self, session: Session, settings: Tensor) -> Tensor:
        """Measure the batch at each setting, and weight the answers with G."""
        return (session.query_each(settings, self._inputs) * self._grad).sum(dim=1)

    def variance(self) -> float:
        """Return the noise variance, summed over the outputs weighted with G."""
        return self._variance * float(self._grad.square().sum())


class Compressed(Readout):
    """Send a few vectors b_k instead of the batch to a linear device: as many as G^T X has rank, or rows.

    With G^T X = sum_k a_k b_k^T, the value for each output is the same entry of sum_k a_k * (A b_k). For
    ``"singular"``, the b_k are the right singular vectors, and all outputs of every answer are used. For ``"rows"``,
    the b_k are the rows of G^T X, and one output of each answer is used (arXiv 2509.15113).

    Args:
        spec: spec of the device.
        weights: weights a_k, (vectors, out_features).
        rows: vectors b_k, (vectors, in_features).
    """

    measures_base = True

    def __init__(self, spec: DeviceSpec, weights: Tensor, rows: Tensor) -> None:
        self._probe = LinearProbe(spec, rows)
        self._weights = weights
        self.vectors = self._probe.vectors

    def base(self, session: Session) -> Tensor:
        """Measure the value, and scale the probes to the range of the detector."""
        return (self._probe.ask(session) * self._weights).sum(dim=0)

    def each(self, session: Session, settings: Tensor) -> Tensor:
        """Measure the probes at each setting, and weight the answers with a_k."""
        return (self._probe.ask_each(session, settings) * self._weights).sum(dim=1)

    def variance(self) -> float:
        """Return the noise variance, summed over the outputs that are used."""
        return float((self._probe.row_variance().unsqueeze(1) * self._weights.square()).sum())


def choose_readout(
    spec: DeviceSpec,
    compression: Compression,
    tail: float,
    inputs: Tensor,
    outputs: Tensor,
    grad_outputs: Tensor,
) -> Readout:
    """Return the cheapest readout of a batch.

    Args:
        spec: spec of the device; if the device is not linear, the batch itself is sent.
        compression: ``"singular"``, ``"rows"``, or ``"none"`` to send the batch itself.
        tail: share of |G^T X|^2, in the smallest singular values, that ``"singular"`` may leave out.
        inputs: inputs X, (batch, in_features).
        outputs: outputs Y, (batch, out_features).
        grad_outputs: gradient G, (batch, out_features).
    """
    batch = Batch(spec, inputs, outputs, grad_outputs)
    if not spec.linear or compression == "none":
        return batch
    product = grad_outputs.mT @ inputs
    if compression == "rows":
        eye = torch.eye(len(product), dtype=product.dtype, device=product.device)
        return Compressed(spec, eye, product) if len(inputs) > len(product) else batch
    U, s, V = torch.linalg.svd(product, full_matrices=False)
    rank = _rank(s, max(product.shape), tail)
    compressed = Compressed(spec, (U[:, :rank] * s[:rank]).mT, V[:rank])
    return compressed if compressed.vectors < batch.vectors else batch


def _rank(values: Tensor, size: int, tail: float) -> int:
    """Return the number of singular values to keep, at least one."""
    energy = values.square()
    rounding = (torch.finfo(values.dtype).eps * size * values[:1]).square()
    left_out = energy.flip(0).cumsum(0).flip(0)  # energy of this singular value and all smaller ones
    keep = (left_out > tail * left_out[:1]) & (energy > rounding)
    return max(1, int(keep.sum()))
