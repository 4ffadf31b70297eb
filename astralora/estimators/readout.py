"""Which vectors to pass, and how to read the change of the loss from the answers, output by output."""

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
    """Reads <f_w(X), G>, summed over the batch and split by output, at many settings of the controls.

    Attributes:
        vectors: that one setting takes.
        measures_base: the value at the unperturbed controls has to be asked for as well.
    """

    vectors: int
    measures_base: bool

    @abstractmethod
    def base(self, session: Session) -> Tensor:
        """The value at the controls that the device holds: (out_features,)."""

    @abstractmethod
    def each(self, session: Session, settings: Tensor) -> Tensor:
        """The values at several settings, (settings, num_controls) -> (settings, out_features)."""

    @abstractmethod
    def variance(self) -> float:
        """Of one value's noise, summed over the outputs."""


class Batch(Readout):
    """The batch itself, whose answer at the unperturbed controls the forward pass has paid for already."""

    measures_base = False

    def __init__(self, spec: DeviceSpec, inputs: Tensor, outputs: Tensor, grad_outputs: Tensor) -> None:
        self.vectors = len(inputs)
        self._variance = answer_variance(spec)
        self._inputs, self._outputs, self._grad = inputs, outputs, grad_outputs

    def base(self, session: Session) -> Tensor:  # noqa: ARG002
        """From the forward pass."""
        return (self._outputs * self._grad).sum(dim=0)

    def each(self, session: Session, settings: Tensor) -> Tensor:
        """All answers, weighed with G."""
        return (session.query_each(settings, self._inputs) * self._grad).sum(dim=1)

    def variance(self) -> float:
        """The noise of every output, weighed with G."""
        return self._variance * float(self._grad.square().sum())


class Compressed(Readout):
    """A linear device asked for as many vectors as G^T X has rank, or rows.

    With G^T X = sum_k a_k b_k^T, the value is sum_k a_k * (A b_k), output by output. ``"singular"``: the b_k are the
    right singular vectors, and every output of every answer counts. ``"rows"``: the b_k are the rows of G^T X, and of
    each answer one output counts: arXiv 2509.15113.

    Args:
        spec: of the device.
        weights: a, (vectors, out_features).
        rows: b, (vectors, in_features).
    """

    measures_base = True

    def __init__(self, spec: DeviceSpec, weights: Tensor, rows: Tensor) -> None:
        self._probe = LinearProbe(spec, rows)
        self._weights = weights
        self.vectors = self._probe.vectors

    def base(self, session: Session) -> Tensor:
        """Asked, and made to fit the detector's range."""
        return (self._probe.ask(session) * self._weights).sum(dim=0)

    def each(self, session: Session, settings: Tensor) -> Tensor:
        """The answers, weighed with a."""
        return (self._probe.ask_each(session, settings) * self._weights).sum(dim=1)

    def variance(self) -> float:
        """The noise of every output that counts."""
        return float((self._probe.row_variance().unsqueeze(1) * self._weights.square()).sum())


def choose_readout(
    spec: DeviceSpec,
    compression: Compression,
    tail: float,
    inputs: Tensor,
    outputs: Tensor,
    grad_outputs: Tensor,
) -> Readout:
    """The cheapest readout of a batch, of the kind that is asked for.

    Args:
        spec: of the device; one that is not linear takes the batch itself.
        compression: which.
        tail: share of |G^T X|^2 that ``"singular"`` may leave out: the smallest singular values.
        inputs: X, (batch, in_features).
        outputs: Y, (batch, out_features).
        grad_outputs: G, (batch, out_features).
    """
    plain = Batch(spec, inputs, outputs, grad_outputs)
    if not spec.linear or compression == "none":
        return plain
    product = grad_outputs.mT @ inputs
    if compression == "rows":
        eye = torch.eye(len(product), dtype=product.dtype, device=product.device)
        return Compressed(spec, eye, product) if len(inputs) > len(product) else plain
    U, s, V = torch.linalg.svd(product, full_matrices=False)
    rank = _rank(s, max(product.shape), tail)
    compressed = Compressed(spec, (U[:, :rank] * s[:rank]).mT, V[:rank])
    return compressed if compressed.vectors < plain.vectors else plain


def _rank(values: Tensor, size: int, tail: float) -> int:
    """How many singular values to keep; one at least."""
    energy = values.square()
    rounding = (torch.finfo(values.dtype).eps * size * values[:1]).square()
    left_out = energy.flip(0).cumsum(0).flip(0)  # by cutting here
    keep = (left_out > tail * left_out[:1]) & (energy > rounding)
    return max(1, int(keep.sum()))
