"""Undoing drift while a chip is only used, not trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .clock import clock_of
from .device import Device
from .errors import DeviceError
from .random import derive_generator
from .session import Session
from .spec import DeviceSpec
from .usage import Usage

__all__ = ["CompensatedDevice", "Compensation"]

Compensation = Literal["global", "output", "columns"]
"""One factor for all outputs, one for each, or one that extra columns of the chip tell along with every answer."""

# References are asked so many times right after a program: what they say then is divided by for long.
_FIRST_REPEATS = 4
# How far the outputs' gains are expected to come apart, as a share: what pulls a faint output to the mean of all.
_APART = 0.1
# Gains below this are those of dead channels; they are left alone.
_DEAD = 0.05


class CompensatedDevice:
    """Scales a chip's outputs back to what they were right after its program.

    ``"global"`` and ``"output"`` ask a few reference vectors right after every program, and again when
    ``every_seconds`` have passed on the device's clock; the outputs are divided by what is left of the answers, of all
    together (Joshi et al., Nat. Commun. 11, 2473 (2020)) or of each output, the latter pulled to the former where an
    output's own reference is faint. They cost ``4 vectors`` vectors a program and ``vectors`` at every refresh, and no
    part of the chip.

    ``"columns"`` gives up the last ``columns`` outputs of the chip. Their controls are fixed for good; right after
    every program their rows of the transfer matrix are measured, by twice as many vectors as there are inputs; from
    then on they answer along with every query, and what is left of their answers is what the others are divided by.
    That costs no vector and no time while the chip is used, and is as recent as can be.

    A factor cannot undo what has moved by different amounts within one output.

    Args:
        device: a linear chip.
        kind: how.
        every_seconds: time from one look at the references to the next.
        vectors: references.
        columns: outputs given up.
        seed: of references.

    Attributes:
        factor: what the newest outputs were multiplied by, one number or (out_features,).

    Raises:
        DeviceError: the chip is not linear, or its outputs do not have controls of their own.
    """

    def __init__(
        self,
        device: Device,
        kind: Compensation = "output",
        *,
        every_seconds: float = 60.0,
        vectors: int = 16,
        columns: int = 4,
        seed: int = 0,
    ) -> None:
        self.session = device if isinstance(device, Session) else Session(device)
        self.kind = kind
        spec = self.session.spec
        if kind not in get_args(Compensation):
            raise DeviceError(f"there is no compensation {kind!r}; known are {', '.join(get_args(Compensation))}")
        if not spec.linear:
            raise DeviceError("is not linear: no factor undoes its drift", device=spec.name, operation="compensate")
        self._columns = columns if kind == "columns" else 0
        if self._columns and (spec.coupling != "elementwise" or not 0 < columns < spec.out_features):
            raise DeviceError(
                f"columns can be given up where every matrix entry has a control of its own, and by less than the "
                f"{spec.out_features} outputs that there are; use 'output'",
                device=spec.name,
                operation="compensate",
            )
        self.every_seconds = every_seconds
        self._clock = clock_of(self.session)
        self._references = _signs(spec, 2 * spec.in_features if self._columns else vectors, seed)
        self._fixed = _reference_controls(spec, self._columns, seed)
        self._first: Tensor | None = None  # answers to the references, or rows of the columns, right after the program
        self._seen_at = 0.0
        self.factor: Tensor = torch.ones(())
        self.spec = self._without_columns(spec)

    def open(self) -> None:
        """Connect."""
        self.session.open()

    def close(self) -> None:
        """Leave the chip in its safe state and disconnect."""
        self.session.close()
        self._first = None

    def program(self, controls: Tensor) -> None:
        """Set all controls, (num_controls,), and look at the references."""
        self._first = None
        whole = torch.cat([controls, self._fixed.to(controls)]) if self._columns else controls
        repeats = 1 if self._columns else _FIRST_REPEATS
        self.session.afford(
            "program", programs=1, batches=(repeats * len(self._references),), first=whole
        )  # before the program is paid for
        self.session.program(whole)
        with self.session.purpose("drift"):
            answers = self.session.query(self._references.to(controls).repeat(repeats, 1))
        if self._columns:
            inputs, outputs = self._references.double(), answers[:, -self._columns :].double()
            self._first = torch.linalg.lstsq(inputs, outputs.cpu()).solution.mT.to(controls)
        else:
            self._first = answers.unflatten(0, (repeats, -1)).mean(dim=0)
        self._seen_at = self._clock.clock_seconds
        self.factor = torch.ones(())

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through, (batch, in_features) -> (batch, out_features), and undo the drift."""
        assert self._first is not None
        if self._columns:
            answers = self.session.query(inputs)
            self._look(answers[:, -self._columns :], inputs @ self._first.to(inputs).mT)
            return answers[:, : -self._columns] * self.factor.to(answers)
        if self._clock.clock_seconds - self._seen_at >= self.every_seconds:
            with self.session.purpose("drift"):
                self._look(self.session.query(self._references.to(inputs)), self._first)
            self._seen_at = self._clock.clock_seconds
        return self.session.query(inputs) * self.factor.to(inputs)

    @property
    def usage(self) -> Usage:
        """What the chip has been asked for, references included."""
        return self.session.usage

    def price(self, usage: Usage) -> Usage:
        """The most that operations come to on the chip: references after every program, and with every query."""
        count = len(self._references)
        first = count * (1 if self._columns else _FIRST_REPEATS)
        looks = 0 if self._columns else usage.queries
        return Usage(
            programs=usage.programs,
            queries=usage.queries + usage.programs + looks,
            vectors=usage.vectors + usage.programs * first + looks * count,
        )

    def state_dict(self) -> dict[str, Any]:
        """The chip's inner state where it can be saved, and what the references said."""
        return {
            "session": self.session.state_dict(),
            "first": self._first,
            "seen_at": self._seen_at,
            "factor": self.factor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Put back what `state_dict` returned; False where the chip could not be."""
        restored = self.session.load_state_dict(state["session"])
        self._first, self._seen_at, self.factor = state["first"], state["seen_at"], state["factor"]
        return restored

    def _look(self, answers: Tensor, first: Tensor) -> None:
        """Take the factor anew, from what references answer now and answered first, (vectors, outputs) each.

        Least squares of y = g y_0, each output's own g pulled to that of all by a prior of its spread.
        """
        answers, first = answers.double(), first.double()
        along, power = (answers * first).sum(dim=0), first.square().sum(dim=0)
        variance = self.session.spec.noise_std**2
        if float(power.sum()) <= 25 * variance * max(first.numel(), 1) ** 0.5:
            return  # nothing but noise to go by
        common = along.sum() / power.sum()
        gain = common
        if self.kind == "output":
            pull = variance / _APART**2 + 1e-12 * power.mean()
            gain = (along + pull * common) / (power + pull)
        self.factor = torch.where(gain > _DEAD, 1 / gain, 1.0)

    def _without_columns(self, spec: DeviceSpec) -> DeviceSpec:
        if not self._columns:
            return spec
        left = spec.out_features - self._columns
        return spec.model_copy(update={"out_features": left, "num_controls": left * spec.in_features})


def _signs(spec: DeviceSpec, count: int, seed: int) -> Tensor:
    """Random vectors at the ends of the input range: (count, in_features)."""
    generator = derive_generator(seed, "references")
    low, high = spec.input_range or (-1.0, 1.0)
    low = max(low, -high) if low < 0 else low
    bits = torch.randint(0, 2, (count, spec.in_features), generator=generator).float()
    # Half of what is legal: a detector at its end would not show that it gets less light.
    return (low + (high - low) * bits) / 2


def _reference_controls(spec: DeviceSpec, columns: int, seed: int) -> Tensor:
    generator = derive_generator(seed, "reference columns")
    low, high = spec.control_range or (-1.0, 1.0)
    return low + (high - low) * torch.rand(columns * spec.in_features, generator=generator)
