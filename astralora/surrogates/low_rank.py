"""Fit a low-rank transfer matrix to the training batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..common.checks import check_whole
from ..devices import Session
from ..lowrank.controller import RefreshController
from ..probing.probes import answer_variance
from .base import Surrogate, measure_transfer_matrix, measurement_vectors
from .factors import Factors, absorb
from .schedule import choose_schedule

__all__ = ["LowRankOnline"]


class LowRankOnline(Surrogate):
    """Update A ~ U V of rank r with every training batch; this stores r (m + n) numbers.

    By default it costs no operation. The update is the smallest change of A that explains the batch up to its noise,
    truncated to the rank; see `astralora.surrogates.factors.absorb`. Use it for devices whose transfer matrix has a low
    rank, or is too large to store. A unitary mesh has no good low-rank approximation.

    With ``refresh="stability"`` the surrogate also refreshes its factors after every change of controls, with the
    vectors that the change of the bases requires, and adapts its rank to the device; see
    `astralora.surrogates.schedule.Schedule`.

    Args:
        rank: rank r, at most the smaller side of the device.
        refresh: ``"stability"``, an `astralora.lowrank.RefreshController`, or None for no further operations.
        max_rank: largest rank that a refresh may choose; None for four times the rank.
        probes: number M of Gaussian probes of a refresh that changes the bases.
        seed: seed of the probes.
    """

    U: Tensor
    """Left factor, (out_features, rank)."""
    V: Tensor
    """Right factor, (rank, in_features), with orthonormal rows."""

    def __init__(
        self,
        *,
        rank: int = 10,
        refresh: str | RefreshController | None = None,
        max_rank: int | None = None,
        probes: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.rank = check_whole("rank", rank)
        self.schedule = choose_schedule(refresh, self.rank, max_rank, check_whole("probes", probes), self.generator)
        self._noise_variance = 0.0

    def startup_vectors(self, session: Session) -> int:
        """Return the number of vectors of one measurement."""
        return measurement_vectors(session)

    def start(self, session: Session, controls: Tensor) -> None:
        """Measure the transfer matrix, and store its truncated SVD."""
        self._noise_variance = answer_variance(session.spec)
        if self.schedule is not None:
            self._set(self.schedule.start(session, controls))
            return
        U, s, V = torch.linalg.svd(measure_transfer_matrix(session, controls), full_matrices=False)
        self.U, self.V = (U[:, : self.rank] * s[: self.rank]).contiguous(), V[: self.rank].contiguous()

    def controls_changed(self, session: Session, controls: Tensor) -> None:
        """Mark a refresh as due if there is a schedule; without one, only the batches update the factors."""
        if self.schedule is not None:
            self.schedule.controls_changed()

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Compute the residual of the batch, and update the factors with it."""
        super().observe(inputs, outputs)
        if self.schedule is not None:
            self.schedule.observe(inputs, outputs, self._factors())
        residual = outputs.double() - self.predict(inputs).double()
        learned = absorb(self.U, self.V, inputs.double(), residual, self._noise_variance)
        if learned is not None:
            self._set(Factors(*(factor.to(self.V) for factor in learned)))

    def prepare(self, session: Session, grad_outputs: Tensor) -> None:
        """Make the measurements that the schedule requires."""
        if self.schedule is not None:
            self._set(self.schedule.refresh(session, self.V, self._factors()))

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """Program the controls, and make the measurements that the schedule requires."""
        if self.schedule is not None:
            session.program(controls)
            self.prepare(session, grad_outputs)

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """Return G U V."""
        return grad_outputs @ self.U.to(grad_outputs) @ self.V.to(grad_outputs)

    def predict(self, inputs: Tensor) -> Tensor:
        """Return X (U V)^T."""
        return inputs @ self.V.to(inputs).mT @ self.U.to(inputs).mT

    def state_dict(self) -> dict[str, Any]:
        """Return the factors, and the state of the schedule."""
        return {
            **super().state_dict(),
            "U": self.U,
            "V": self.V,
            "noise_variance": self._noise_variance,
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.U, self.V, self._noise_variance = state["U"], state["V"], state["noise_variance"]
        # Old checkpoints, from before schedules existed, contain no schedule.
        if self.schedule is not None and state.get("schedule") is not None:
            self.schedule.load_state_dict(state["schedule"])

    def _factors(self) -> Factors:
        Q, R = torch.linalg.qr(self.U)
        return Factors(Q, R, self.V)

    def _set(self, factors: Factors) -> None:
        # The memory layout is fixed, so that products round in the same way before and after a checkpoint.
        self.U, self.V = (factors.U @ factors.S).contiguous(), factors.V.contiguous()
