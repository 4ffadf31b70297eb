"""Estimate the gradient on devices with structured coupling by few programs for any number of controls."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.checks import check_whole
from ..devices import DeviceSpec, Session
from ..probing.hadamard import CodedSigns
from .base import directions_per_call, sign_reach, within
from .colouring import Colouring
from .steps import Step
from .transfer import TransferEstimator

__all__ = ["Coloured"]

# Largest number of programs of an estimate, if the exact gradient would need more.
_MOST = 128


class Coloured(TransferEstimator):
    """Move all controls at once, with sign patterns that separate controls of the same matrix entry.

    Controls of one colour change disjoint parts of the transfer matrix (see `Colouring`). The effect of control p is
    computed from the part R_p that it changes:

        g_p = 1 / (M mu) sum_k s_kp sum_(ij in R_p) (G^T X)_ij (A(w + mu s_k) - A(w))_ij.

    The signs s_k of different colours are orthogonal over the M programs. If M is the next power of two above the
    number of colours, the contributions of other colours cancel, and the estimate is exact up to curvature. With fewer
    programs it is still unbiased. Every program moves every control, so the noise falls as 1 / sqrt(M). With one colour
    this is `Elementwise` without pooling. A(w) is stored in `transfer_matrix`.

    Args:
        samples: number of programs M without the program at w; None for the number that makes the estimate exact, at
            most 128.
        step: see `TransferEstimator`.
        repeats: number of times that each probe is sent; more vectors reduce the noise without more programs.
        seed: seed of the estimator's own random stream.
    """

    couplings = ("elementwise", "output", "sparse")

    def __init__(self, *, samples: int | None = None, step: Step = "auto", repeats: int = 1, seed: int = 0) -> None:
        super().__init__(step=step, repeats=repeats, seed=seed)
        self.samples = None if samples is None else check_whole("samples", samples)
        self._coloured: tuple[DeviceSpec, Colouring] | None = None

    def estimate(
        self,
        session: Session,
        controls: Tensor,
        inputs: Tensor,
        outputs: Tensor,
        grad_outputs: Tensor,
    ) -> Tensor:
        """Multiply the measured changes by G^T X, and sum the products for each control; see the class."""
        spec = session.spec
        self.step_choice = self._step_for(spec)
        step = self.step_choice.size
        probe = self._probe_for(session, controls)
        colouring = self._colouring(spec)
        count = self.samples or min(1 << (colouring.count - 1).bit_length(), _MOST)
        session.afford("estimate", programs=count + 1, vectors=(count + 1) * probe.vectors, first=controls)
        own = self._signs(1, controls)[0]
        codes = CodedSigns(colouring.count, self.generator)
        weights = grad_outputs.mT @ inputs
        gradient = torch.zeros_like(controls)
        with session.transaction():
            session.program(controls)
            before = probe.ask(session)
            for part in directions_per_call(count, len(controls), probe.vectors * spec.out_features):
                code = codes.take(part).to(controls)
                signs = code[:, colouring.colour.to(code.device)] * own
                after = probe.ask_each(session, within(spec, torch.add(controls, signs, alpha=step)))
                changes = colouring.gather(weights * probe.matrix(after - before))
                gradient += (signs * changes).sum(dim=0)
        self._adapt(probe)
        self.transfer_matrix = probe.matrix(before)
        gradient /= count * step
        if spec.control_range is None:
            return gradient
        low, high = spec.control_range
        # Near an end of the range, half of the steps are clamped, so the gradient is divided by their mean length.
        return gradient / sign_reach((low - controls) / step, (high - controls) / step)

    def _colouring(self, spec: DeviceSpec) -> Colouring:
        # The colouring is stored, because computing it takes longer than an estimate.
        if self._coloured is None or self._coloured[0] is not spec:
            self._coloured = (spec, Colouring(spec))
        return self._coloured[1]
