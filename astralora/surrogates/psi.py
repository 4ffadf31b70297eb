"""Update a low-rank transfer matrix by projector splitting: the published surrogate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..common.checks import check_whole
from ..common.errors import ConfigurationError
from ..devices import Session
from ..lowrank.controller import RefreshController
from ..probing.probes import LinearProbe, orthogonal_probes
from .base import Surrogate, measure_transfer_matrix, measurement_vectors
from .factors import Factors
from .schedule import choose_schedule

__all__ = ["Psi"]


class Psi(Surrogate):
    """Update A ~ U S V by the implicit projector-splitting step of arXiv 2509.15113.

    The surrogate starts from the truncated SVD of the measured transfer matrix. When the controls move from w0 to w1,
    probes measure dA = A(w1) - A(w0):

    1. P1 = dA V^T; K = U S + P1; QR: K = U1 R; S^ = R - U1^T P1.
    2. P2 = dA^T U1, estimated from Gaussian probes Z as Z^T (dA Z^T)^T U1 / M'.
    3. L = V^T S^^T + P2; QR: L = V1 R'; the new factors are U1, R'^T and V1^T.

    The answers at w0 are measured in the backward pass, while the device still has the controls w0, so a step costs
    vectors but no program. Only differences are measured, so errors of the probe estimate add up over the steps;
    `residual` shows their sum.

    With ``refresh="stability"`` the step above is replaced by the cheapest sufficient refresh: r vectors for a change
    of S only, 2r + M vectors for one splitting step, or a new measurement. The rank is adapted to the device. See
    `astralora.surrogates.schedule.Schedule`.

    Args:
        rank: rank r, at most the smaller side of the device.
        probes: number M' of Gaussian probes in a step; None for in_features orthogonal probes, which make P2 exact.
        rebuild_every: number of changes of the controls after which the surrogate starts again from a measurement.
        exact_svd: whether to start again at every change. This gives the best approximation of this rank, and costs
            in_features vectors for each step.
        refresh: ``"stability"``, an `astralora.lowrank.RefreshController`, or None for the published step.
        max_rank: largest rank that a refresh may choose; None for four times the rank.
        seed: seed of the surrogate's own random stream.
    """

    def __init__(
        self,
        *,
        rank: int = 10,
        probes: int | None = 100,
        rebuild_every: int | None = None,
        exact_svd: bool = False,
        refresh: str | RefreshController | None = None,
        max_rank: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        self.rank = check_whole("rank", rank)
        self.probes = None if probes is None else check_whole("probes", probes)
        rebuild_every = None if rebuild_every is None else check_whole("rebuild_every", rebuild_every)
        self.schedule = choose_schedule(refresh, self.rank, max_rank, self.probes, self.generator)
        if self.schedule is not None and (exact_svd or rebuild_every is not None):
            raise ConfigurationError(
                "exact_svd, rebuild_every and refresh each decide when to measure again; give one of them"
            )
        self._rebuild_every = 1 if exact_svd else rebuild_every
        self._changes = 0
        self._power = 1.0
        # Probes of the backward pass, which are sent again after the update: rows, amplitudes and answers.
        self._old_probes: dict[str, Tensor] | None = None

    U: Tensor
    """Left factor, (out_features, rank), with orthonormal columns."""
    S: Tensor
    """Core, (rank, rank)."""
    V: Tensor
    """Right factor, (rank, in_features), with orthonormal rows."""

    def start(self, session: Session, controls: Tensor) -> None:
        """Measure the transfer matrix, and store its truncated SVD."""
        if self.schedule is not None:
            self._set(*self.schedule.start(session, controls))
            return
        matrix = measure_transfer_matrix(session, controls)
        U, s, V = torch.linalg.svd(matrix, full_matrices=False)
        rank = min(self.rank, len(s))
        self._set(U[:, :rank], torch.diag(s[:rank]), V[:rank])
        self._old_probes = None
        self._changes = 0

    def startup_vectors(self, session: Session) -> int:
        """Return the number of vectors: one for each input, or two if the inputs can have one sign only."""
        return measurement_vectors(session)

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Compute the residual of the batch, and pass the batch to the schedule."""
        super().observe(inputs, outputs)
        if self.schedule is not None:
            self.schedule.observe(inputs, outputs, self._factors)

    def prepare(self, session: Session, grad_outputs: Tensor) -> None:
        """Measure the probes at the old controls; with a schedule, make the measurements that it requires."""
        if self.schedule is not None:
            self._set(*self.schedule.refresh(session, self.V, self._factors))
            return
        if self._old_probes is None and self._changes + 1 != self._rebuild_every:
            probe = LinearProbe(session.spec, torch.cat([self.V, self._fresh_probes()]))
            answers = probe.ask(session)
            self._old_probes = {"rows": probe.rows, "amplitude": probe.amplitude, "answers": answers}

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """Make the measurements that the schedule requires; without one, the published step was made already."""
        if self.schedule is not None:
            session.program(controls)
            self.prepare(session, grad_outputs)

    def controls_changed(self, session: Session, controls: Tensor) -> None:
        """Measure the probes at the new controls and make the step; with a schedule, only mark a refresh as due."""
        self._changes += 1
        if self.schedule is not None:
            self.schedule.controls_changed()
            return
        if self._old_probes is None:
            self.start(session, controls)
            return
        probe = LinearProbe(session.spec, self._old_probes["rows"])
        probe.amplitude = self._old_probes["amplitude"]
        change = probe.ask_again(session) - self._old_probes["answers"]  # [V; Z] dA^T
        self._old_probes = None
        rank = len(self.S)
        P1 = change[:rank].mT
        U1, R = torch.linalg.qr(self.U @ self.S + P1)
        S_hat = R - U1.mT @ P1
        P2 = probe.rows[rank:].mT @ (change[rank:] @ U1) / self._power
        V1, R1 = torch.linalg.qr(self.V.mT @ S_hat.mT + P2)
        self._set(U1, R1.mT, V1.mT)

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """Return G U S V."""
        return grad_outputs @ self.U.to(grad_outputs) @ self.S.to(grad_outputs) @ self.V.to(grad_outputs)

    def predict(self, inputs: Tensor) -> Tensor:
        """Return X (U S V)^T."""
        return self._factors.answer(inputs)

    def state_dict(self) -> dict[str, Any]:
        """Return the factors, the probes to send again, and the state of the schedule."""
        return {
            **super().state_dict(),
            "U": self.U,
            "S": self.S,
            "V": self.V,
            "changes": self._changes,
            "power": self._power,
            "asked": self._old_probes,
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        super().load_state_dict(state)
        self.U, self.S, self.V = state["U"], state["S"], state["V"]
        self._changes, self._power, self._old_probes = state["changes"], state["power"], state["asked"]
        # Old checkpoints, from before schedules existed, contain no schedule.
        if self.schedule is not None and state.get("schedule") is not None:
            self.schedule.load_state_dict(state["schedule"])

    @property
    def _factors(self) -> Factors:
        return Factors(self.U, self.S, self.V)

    def _set(self, U: Tensor, S: Tensor, V: Tensor) -> None:
        # The memory layout is fixed, so that products round in the same way before and after a checkpoint.
        self.U, self.S, self.V = U.contiguous(), S.contiguous(), V.contiguous()

    def _fresh_probes(self) -> Tensor:
        width = self.V.shape[1]
        if self.probes is None:
            rows, self._power = orthogonal_probes(width, self.V.dtype)
            return rows.to(self.V.device)
        self._power = float(self.probes)
        rows = torch.randn(self.probes, width, generator=self.generator, dtype=self.V.dtype)
        return rows.to(self.V.device)
