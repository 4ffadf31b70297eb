"""Refresh a low-rank surrogate by the fewest vectors that are sufficient for the change of its bases."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import Session
from ..lowrank.bases import align_basis, basis_overlap
from ..lowrank.controller import Refresh, RefreshController
from ..probing.probes import LinearProbe, answer_variance, orthogonal_probes
from .base import measure_transfer_matrix
from .factors import Factors, absorb

__all__ = ["Schedule", "choose_schedule"]


class Schedule:
    """Update A ~ U S V when the controls change, with vectors at the newest controls only.

    The kind of a refresh is chosen after the forward pass. The batch shows, at no cost, how large the error is and how
    much the bases would change. For this, the residual after the best S for this batch is absorbed into a copy of the
    factors; the part that this rank has never explained counts as noise. The bases of the copy are then compared with
    the present bases. With the present transfer matrix A, the refreshes are

    - *refit*, r vectors: S = U^T (A V^T);
    - *split*, 2r + M vectors: a projector-splitting step that starts from the surrogate itself, so that errors do not
      add up:

        1. K = A V^T; QR: K = U1 R
        2. dA^T U1, with the smallest dA that explains the answers to V and to M Gaussian probes Z
        3. L = V^T S^T U^T U1 + dA^T U1; QR: L = V1 R'
        4. A V1^T = U2 S2 by QR, with r more vectors;

    - *rebuild*, the vectors of a measurement: the truncated SVD of the measured matrix.

    Args:
        controller: object that chooses the kind of each refresh.
        probes: number M of Gaussian probes; None for in_features orthogonal probes.
        generator: random stream of the probes.
    """

    def __init__(self, controller: RefreshController, probes: int | None, generator: torch.Generator) -> None:
        self.controller = controller
        self._probes = probes
        self._generator = generator
        self._due = False
        self._batch: tuple[Tensor, Tensor] | None = None
        self._overlap, self._error = 0.0, 0.0
        self._noise = 0.0  # noise variance of one output

    def start(self, session: Session, controls: Tensor) -> Factors:
        """Measure the factors of a device that is programmed with ``controls``."""
        self._due, self._batch, self.controller.floor = False, None, None
        self._noise = answer_variance(session.spec)
        return self._rebuild(session, controls)

    def controls_changed(self) -> None:
        """Mark a refresh as due after the next forward pass."""
        self._due, self._batch = True, None

    def observe(self, inputs: Tensor, outputs: Tensor, factors: Factors) -> None:
        """Store the batch of a forward pass, and compute the error of these factors for it."""
        X, Y = inputs.double(), outputs.double()
        if not len(Y) or float(Y.square().mean()) <= self._noise:
            return  # an answer that is only noise contains no information
        self._batch = X, Y
        self._error = self._error_of(factors)
        if self._due:
            self._overlap = self._overlap_with(factors)

    def refresh(self, session: Session, like: Tensor, factors: Factors) -> Factors:
        """Return the factors at the present controls of the device; spend nothing unless the controls have changed.

        Args:
            session: session of the device.
            like: tensor with the dtype and torch device for the vectors.
            factors: present factors.
        """
        controller = self.controller
        if not self._due:
            if controller.floor is None and self._batch is not None:
                controller.judge(Refresh.REBUILD, self._error, len(factors.V))
            return factors
        self._due = False
        # Without a batch, the bases count as completely changed, and the error as unchanged.
        has_batch = self._batch is not None
        error = self._error if has_batch else controller.floor or 0.0
        choice = controller.choose(self._overlap if has_batch else 0.0, error)
        if choice is Refresh.REBUILD:
            factors = self._rebuild(session, like)
        else:
            K = _answers(session, factors.V.to(like)).mT.double()
            factors = Factors(*(factor.double() for factor in factors))
            if choice is Refresh.REFIT:
                factors = Factors(factors.U, factors.U.mT @ K, factors.V)
            else:
                factors = self._split(session, like, factors, K)
        factors, s = factors.folded()
        factors = self._cut(factors, s)
        if has_batch:
            controller.judge(choice, self._error_of(factors), len(factors.V))
        return Factors(*(factor.to(like).contiguous() for factor in factors))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next refresh depends on."""
        return {
            "controller": self.controller.state_dict(),
            "due": self._due,
            "batch": self._batch,
            "overlap": self._overlap,
            "error": self._error,
            "noise": self._noise,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.controller.load_state_dict(state["controller"])
        self._due, self._batch = state["due"], state["batch"]
        self._overlap, self._error, self._noise = state["overlap"], state["error"], state["noise"]

    # -- from a batch ----------------------------------------------------------------------

    def _error_of(self, factors: Factors) -> float:
        """Return the share of the amplitude of the batch, without noise, that the factors do not explain."""
        assert self._batch is not None
        X, Y = self._batch
        unexplained, power = (float(value.square().mean()) - self._noise for value in (Y - factors.answer(X), Y))
        return sqrt(max(unexplained, 0.0) / power)

    def _overlap_with(self, factors: Factors) -> float:
        """Return the overlap of the bases with the bases after absorbing the batch."""
        assert self._batch is not None
        X, Y = self._batch
        factors = Factors(*(factor.double() for factor in factors))
        U, _, V = factors
        residual = Y - factors.answer(X)
        mixed = X @ V.mT
        residual = residual - mixed @ (torch.linalg.pinv(mixed) @ (residual @ U)) @ U.mT
        power = float(Y.square().mean()) - self._noise
        unexplained = self._noise + (self.controller.floor or 0.0) ** 2 * power
        suggested = absorb(U @ factors.S, V, X, residual, unexplained)
        if suggested is None:
            return 1.0
        return basis_overlap(U, V.mT, align_basis(suggested.U, U), align_basis(suggested.V.mT, V.mT))

    # -- from measurements -----------------------------------------------------------------

    def _rebuild(self, session: Session, like: Tensor) -> Factors:
        U, s, V = torch.linalg.svd(measure_transfer_matrix(session, like), full_matrices=False)
        return Factors(U, torch.diag(s), V).cut(self.controller.rank_of(s))

    def _split(self, session: Session, like: Tensor, factors: Factors, K: Tensor) -> Factors:
        U, S, V = factors
        U1, _ = torch.linalg.qr(K)
        Z = self._fresh_probes(V.shape[1], like)
        answers = torch.cat([K.mT, _answers(session, Z).double()])  # to V and Z
        rows = torch.cat([V, Z.double()])
        change = answers - factors.answer(rows)  # [V; Z] dA^T
        L = V.mT @ (S.mT @ (U.mT @ U1)) + torch.linalg.pinv(rows) @ (change @ U1)
        V1, _ = torch.linalg.qr(L)
        U2, S2 = torch.linalg.qr(_answers(session, V1.mT.to(like)).mT.double())
        return Factors(U2, S2, V1.mT)

    def _cut(self, factors: Factors, s: Tensor) -> Factors:
        """Remove small singular values that are not necessary to explain the batch."""
        rank = self.controller.cut(s)
        if rank == len(s) or self._batch is None:
            return factors
        shorter = factors.cut(rank)
        return shorter if self.controller.allows(*(self._error_of(f) for f in (factors, shorter))) else factors

    def _fresh_probes(self, width: int, like: Tensor) -> Tensor:
        if self._probes is None:
            return orthogonal_probes(width, like.dtype)[0].to(like.device)
        return torch.randn(self._probes, width, generator=self._generator, dtype=like.dtype).to(like.device)


def choose_schedule(
    refresh: str | RefreshController | None,
    rank: int,
    max_rank: int | None,
    probes: int | None,
    generator: torch.Generator,
) -> Schedule | None:
    """Return the schedule for the options of a surrogate; None for no schedule.

    Args:
        refresh: ``"stability"``, a controller to copy, or None.
        rank: rank at the start.
        max_rank: largest rank; None for the maximum of the controller.
        probes: number M of Gaussian probes in a split.
        generator: random stream of the probes.

    Raises:
        ConfigurationError: ``refresh`` is not valid, or ``max_rank`` is given without a ``refresh``.
    """
    if refresh is None:
        if max_rank is not None:
            raise ConfigurationError(
                "max_rank limits the rank of refresh='stability', but without refresh the rank is constant; "
                "leave max_rank out, or set refresh"
            )
        return None
    if isinstance(refresh, RefreshController):
        # Copied, because layers that are attached together get the same object.
        return Schedule(copy.deepcopy(refresh), probes, generator)
    if refresh != "stability":
        raise ConfigurationError(f"refresh must be 'stability', a RefreshController or None, not {refresh!r}")
    return Schedule(RefreshController(rank, max_rank=max_rank), probes, generator)


def _answers(session: Session, rows: Tensor) -> Tensor:
    return LinearProbe(session.spec, rows).ask(session)
