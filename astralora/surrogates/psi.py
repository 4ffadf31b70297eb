"""The published surrogate: a low-rank transfer matrix that follows the device by projector splitting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import Session
from ..estimators.base import whole
from ..lowrank.controller import RefreshController
from ..probing.probes import LinearProbe, orthogonal_probes
from .base import Surrogate, measure_transfer_matrix, measurement_vectors
from .factors import Factors
from .schedule import choose_schedule

__all__ = ["Psi"]


class Psi(Surrogate):
    """Low-rank surrogate A ~ U S V, moved by the implicit projector-splitting step of arXiv 2509.15113.

    Starts from the truncated SVD of the measured transfer matrix. When the controls move from w0 to w1, with
    dA = A(w1) - A(w0) seen through probes only:

    1. P1 = dA V^T; K = U S + P1; QR: K = U1 R; S^ = R - U1^T P1.
    2. P2 = dA^T U1, estimated from Gaussian probes Z as Z^T (dA Z^T)^T U1 / M'.
    3. L = V^T S^^T + P2; QR: L = V1 R'; the new factors are U1, R'^T and V1^T.

    The answers at w0 are taken in the backward pass, while the device still holds w0, so that a step costs
    vectors but no program. Only differences enter: errors of the probe estimate add up over the steps,
    which `residual` shows.

    With ``refresh="stability"`` the step above gives way to what the bases ask for, from r vectors for a change of S
    alone, over 2r + M for one step of splitting, to a new measurement; and the rank follows the device. See
    `astralora.surrogates.schedule.Schedule`.

    Args:
        rank: r, at most the smaller side of the device.
        probes: M', Gaussian probes a step; None takes in_features orthogonal ones, which makes P2 exact.
        rebuild_every: start afresh from a measurement after so many changes of controls.
        exact_svd: start afresh at every change: the best that this rank can do, for in_features vectors a step.
        refresh: ``"stability"``, a `astralora.lowrank.RefreshController`, or None for the published step.
        max_rank: the most that a refresh may let the rank grow to; four times the rank unless given.
        seed: of the surrogate's own random stream.
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
        self.rank = whole("rank", rank)
        self.probes = None if probes is None else whole("probes", probes)
        rebuild_every = None if rebuild_every is None else whole("rebuild_every", rebuild_every)
        self.schedule = choose_schedule(refresh, self.rank, max_rank, self.probes, self.generator)
        if self.schedule is not None and (exact_svd or rebuild_every is not None):
            raise ConfigurationError(
                "exact_svd and rebuild_every say when to measure anew, and so does refresh; give one of them"
            )
        self._rebuild_every = 1 if exact_svd else rebuild_every
        self._changes = 0
        self._power = 1.0
        # Asked in the backward pass, due again after the update: rows, their strength, and the answers.
        self._asked: dict[str, Tensor] | None = None

    U: Tensor
    """Left factor, (out_features, rank), with orthonormal columns."""
    S: Tensor
    """Core, (rank, rank)."""
    V: Tensor
    """Right factor, (rank, in_features), with orthonormal rows."""

    def start(self, session: Session, controls: Tensor) -> None:
        """The truncated SVD of the device's measured transfer matrix."""
        if self.schedule is not None:
            self._set(*self.schedule.start(session, controls))
            return
        matrix = measure_transfer_matrix(session, controls)
        U, s, V = torch.linalg.svd(matrix, full_matrices=False)
        rank = min(self.rank, len(s))
        self._set(U[:, :rank], torch.diag(s[:rank]), V[:rank])
        self._asked = None
        self._changes = 0

    def startup_vectors(self, session: Session) -> int:
        """One vector an input, or two where the inputs have only one sign."""
        return measurement_vectors(session)

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Note the residual, and what it says about the bases."""
        super().observe(inputs, outputs)
        if self.schedule is not None:
            self.schedule.observe(inputs, outputs, self._factors)

    def prepare(self, session: Session, grad_outputs: Tensor) -> None:  # noqa: ARG002
        """Ask for the answers at the old controls; or, by a schedule, for what is due at the new ones."""
        if self.schedule is not None:
            self._set(*self.schedule.refresh(session, self.V, self._factors))
            return
        if self._asked is None and self._changes + 1 != self._rebuild_every:
            probe = LinearProbe(session.spec, torch.cat([self.V, self._fresh_probes()]))
            answers = probe.ask(session)
            self._asked = {"rows": probe.rows, "amplitude": probe.amplitude, "answers": answers}

    def catch_up(self, session: Session, controls: Tensor, grad_outputs: Tensor) -> None:
        """As `prepare` by a schedule; the published step has been made already."""
        if self.schedule is not None:
            session.program(controls)
            self.prepare(session, grad_outputs)

    def controls_changed(self, session: Session, controls: Tensor) -> None:
        """Ask for the answers at the new controls, and move; a schedule waits for the batch."""
        self._changes += 1
        if self.schedule is not None:
            self.schedule.controls_changed()
            return
        if self._asked is None:
            self.start(session, controls)
            return
        probe = LinearProbe(session.spec, self._asked["rows"])
        probe.amplitude = self._asked["amplitude"]
        change = probe.ask_again(session) - self._asked["answers"]  # [V; Z] dA^T
        self._asked = None
        rank = len(self.S)
        P1 = change[:rank].mT
        U1, R = torch.linalg.qr(self.U @ self.S + P1)
        S_hat = R - U1.mT @ P1
        P2 = probe.rows[rank:].mT @ (change[rank:] @ U1) / self._power
        V1, R1 = torch.linalg.qr(self.V.mT @ S_hat.mT + P2)
        self._set(U1, R1.mT, V1.mT)

    def vjp(self, grad_outputs: Tensor) -> Tensor:
        """G U S V."""
        return grad_outputs @ self.U.to(grad_outputs) @ self.S.to(grad_outputs) @ self.V.to(grad_outputs)

    def predict(self, inputs: Tensor) -> Tensor:
        """X (U S V)^T."""
        return self._factors.answer(inputs)

    def state_dict(self) -> dict[str, Any]:
        """The factors, and the probes whose answers are still due."""
        return {
            **super().state_dict(),
            "U": self.U,
            "S": self.S,
            "V": self.V,
            "changes": self._changes,
            "power": self._power,
            "asked": self._asked,
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        super().load_state_dict(state)
        self.U, self.S, self.V = state["U"], state["S"], state["V"]
        self._changes, self._power, self._asked = state["changes"], state["power"], state["asked"]
        # Checkpoints of before there were schedules have none.
        if self.schedule is not None and state.get("schedule") is not None:
            self.schedule.load_state_dict(state["schedule"])

    @property
    def _factors(self) -> Factors:
        return Factors(self.U, self.S, self.V)

    def _set(self, U: Tensor, S: Tensor, V: Tensor) -> None:
        # In one memory layout: products round alike before and after a checkpoint.
        self.U, self.S, self.V = U.contiguous(), S.contiguous(), V.contiguous()

    def _fresh_probes(self) -> Tensor:
        width = self.V.shape[1]
        if self.probes is None:
            rows, self._power = orthogonal_probes(width, self.V.dtype)
            return rows.to(self.V.device)
        self._power = float(self.probes)
        rows = torch.randn(self.probes, width, generator=self.generator, dtype=self.V.dtype)
        return rows.to(self.V.device)
