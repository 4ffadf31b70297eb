"""The running fit in the memory of the published surrogate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..devices import Session
from ..estimators.base import whole
from ..lowrank.controller import RefreshController
from ..probing.probes import answer_variance
from .base import Surrogate, measure_transfer_matrix, measurement_vectors
from .factors import Factors, absorb
from .schedule import choose_schedule

__all__ = ["LowRankOnline"]


class LowRankOnline(Surrogate):
    """A ~ U V of a given rank, moved by every training batch: r (m + n) numbers, and no operation unless asked for.

    The smallest change of A that explains the batch up to its noise, cut back to the rank; see
    `astralora.surrogates.factors.absorb`. For devices whose transfer matrix is of low rank, or too large: of a unitary
    mesh no low rank is a good likeness.

    With ``refresh="stability"`` it also asks, after every change of controls, for what the bases need beyond the
    batch, and its rank follows the device; see `astralora.surrogates.schedule.Schedule`.

    Args:
        rank: r, at most the smaller side of the device.
        refresh: ``"stability"``, a `astralora.lowrank.RefreshController`, or None for no operation of its own.
        max_rank: the most that a refresh may let the rank grow to; four times the rank unless given.
        probes: M, Gaussian probes of a refresh that moves the bases.
        seed: of those.
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
        self.rank = whole("rank", rank)
        self.schedule = choose_schedule(refresh, self.rank, max_rank, whole("probes", probes), self.generator)
        self._noise_variance = 0.0

    def startup_vectors(self, session: Session) -> int:
        """As many as a measurement takes."""
        return measurement_vectors(session)

    def start(self, session: Session, controls: Tensor) -> None:
        """The truncated SVD of the device's measured transfer matrix."""
        self._noise_variance = answer_variance(session.spec)
        if self.schedule is not None:
            self._set(self.schedule.start(session, controls))
            return
        U, s, V = torch.linalg.svd(measure_transfer_matrix(session, controls), full_matrices=False)
        self.U, self.V = (U[:, : self.rank] * s[: self.rank]).contiguous(), V[: self.rank].contiguous()

    def controls_changed(self, session: Session, controls: Tensor) -> None:  # noqa: ARG002
        """By a schedule, a refresh is due; the batch alone has to do otherwise."""
        if self.schedule is not None:
            self.schedule.controls_changed()

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Note the residual, then learn from it."""
        super().observe(inputs, outputs)
        if self.schedule is not None:
            self.schedule.observe(inputs, outputs, self._factors())
        residual = outputs.double() - self.predict(inputs).double()
        learned = absorb(self.U, self.V, inputs.double(), residual, self._noise_variance)
        if learned is not None:
            self._set(Factors(*(factor.to(self.V) for factor in learned)))

    def prepare(self, session: Session, grad_outputs: Tensor) -> None:  # noqa: ARG002
        """By a schedule, ask for what is due."""
        if self.schedule is not None:
            self._set(self.schedule.refresh(session, self.V, self._factors()))

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """As `prepare`."""
        if self.schedule is not None:
            session.program(controls)
            self.prepare(session, grad_outputs)

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """G U V."""
        return grad_outputs @ self.U.to(grad_outputs) @ self.V.to(grad_outputs)

    def predict(self, inputs: Tensor) -> Tensor:
        """X (U V)^T."""
        return inputs @ self.V.to(inputs).mT @ self.U.to(inputs).mT

    def state_dict(self) -> dict[str, Any]:
        """The factors, and what the schedule knows."""
        return {
            **super().state_dict(),
            "U": self.U,
            "V": self.V,
            "noise_variance": self._noise_variance,
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        super().load_state_dict(state)
        self.U, self.V, self._noise_variance = state["U"], state["V"], state["noise_variance"]
        # Checkpoints of before there were schedules have none.
        if self.schedule is not None and state.get("schedule") is not None:
            self.schedule.load_state_dict(state["schedule"])

    def _factors(self) -> Factors:
        Q, R = torch.linalg.qr(self.U)
        return Factors(Q, R, self.V)

    def _set(self, factors: Factors) -> None:
        # In one memory layout: products round alike before and after a checkpoint.
        self.U, self.V = (factors.U @ factors.S).contiguous(), factors.V.contiguous()
