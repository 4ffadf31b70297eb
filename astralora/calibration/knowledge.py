"""What a calibration measures directly, before a law is fitted, and what it takes over from that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ..characterisation import Characterisation, characterisation_cost, characterise
from ..characterisation.measurement import Cost
from ..common.errors import ConfigurationError
from ..devices import Budget, CalibrationMismatch, DeviceSpec, Session
from ..devices.files import write_atomically

__all__ = ["SHARE", "Knowledge", "check_known", "dead_outputs", "findings_of", "tensors_of", "unpromised"]

SHARE = 0.25
"""Share of a calibration's programs and vectors that goes, at most, into what the spec does not promise."""

# Outputs whose answers have less than this share of the usual power see nothing.
_DEAD = 0.02


class Knowledge:
    """What is known of a chip without a law, and what it takes to find out.

    Args:
        session: guards the chip.
        budget: of the whole calibration.
        measurements: that are wanted; none where empty, all where None.
        seed: of them.
        path: where what was found is kept until the record is written.

    Attributes:
        reserved: the most that it takes of the budget.
        cost: the same, or nothing where it has been measured already, before an interruption.
    """

    def __init__(
        self, session: Session, budget: Budget, measurements: list[str] | None, seed: int, path: Path | None
    ) -> None:
        self._session, self._budget, self._only, self._seed = session, budget, measurements, seed
        self._path = path
        self.reserved = self.cost = Cost(0, 0)
        self._wanted = measurements is None or bool(measurements)
        if self._wanted:
            self.reserved = characterisation_cost(session, budget, only=measurements, seed=seed)
            self.cost = self.reserved if self._kept() is None else Cost(0, 0)

    def find(self) -> Characterisation | None:
        """Measure, unless it is kept already; None where nothing is wanted."""
        if not self._wanted:
            return None
        found = self._kept()
        if found is None:
            found = characterise(self._session, self._budget, only=self._only, seed=self._seed)
            if self._path is not None:
                write_atomically(self._path, found.model_dump_json().encode())
        return found

    def forget(self) -> None:
        """Remove what was kept: the record has it now."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _kept(self) -> Characterisation | None:
        if self._path is None or not self._path.exists():
            return None
        try:
            found = Characterisation.model_validate_json(self._path.read_bytes())
            check_known(found, self._session.spec)
        except (ValidationError, CalibrationMismatch):
            raise ConfigurationError(
                f"{self._path} holds measurements of another chip; go on with that one, or delete the file"
            ) from None
        return found


def unpromised(spec: DeviceSpec) -> list[str]:
    """Measurements of what a spec says nothing about: noise and codes, where it does not even tell its noise.

    Dead outputs, stuck controls, dark levels and curves come with the law.
    """
    if spec.noise_std > 0:
        return []
    wanted = ["noise", "converters"]
    if spec.linear and spec.input_levels is None:
        wanted.append("ramp")
    if spec.linear and spec.coupling == "elementwise" and spec.control_levels is None:
        wanted.append("wobble")
    return wanted


def check_known(known: Characterisation, spec: DeviceSpec) -> None:
    """Refuse what was measured of another device.

    Raises:
        CalibrationMismatch: it was.
    """
    theirs, ours = known.promised, spec
    for what in ("serial_number", "name", "in_features", "out_features", "num_controls"):
        if getattr(theirs, what) != getattr(ours, what):
            raise CalibrationMismatch(
                f"what is known was measured on a device of {what} {getattr(theirs, what)}, and this has "
                f"{getattr(ours, what)}; characterise this one",
                device=spec.name,
                operation="calibrate",
            )


def findings_of(known: Characterisation | None) -> tuple[dict[str, Any], ...]:
    """Findings as a record keeps them, without what pictures are drawn from."""
    if known is None:
        return ()
    return tuple(finding.model_dump(mode="json", exclude={"data"}) for finding in known.findings)


def tensors_of(known: Characterisation | None) -> dict[str, Tensor]:
    """Findings that are many numbers each: noise and dark level by output, the transfer curve, the crosstalk map."""
    found: dict[str, Tensor] = {}
    if known is None:
        return found
    wanted = {
        "noise_std": {"noise/by_output": "std"},
        "dark_level": {"dark/offset": "offset", "dark/error": "error"},
        "transfer_curve": {"curve/control": "control", "curve/entry": "entry", "curve/spread": "spread"},
        "crosstalk": {"crosstalk/kernel": "kernel", "crosstalk/errors": "errors"},
    }
    for finding in known.findings:
        for name, key in wanted.get(finding.name, {}).items():
            if key in finding.data:
                found[name] = torch.tensor(finding.data[key], dtype=torch.float32)
    for name in ("dead_outputs", "dead_inputs", "stuck_controls"):
        if name in known:
            found[name] = torch.tensor(known[name].data["which"], dtype=torch.int64)
    return found


def dead_outputs(outputs: Tensor, noise: float) -> Tensor:
    """Which outputs see nothing, from answers to all sorts of settings and vectors.

    Args:
        outputs: (settings, vectors, out_features).
        noise: of an answer.
    """
    flat = outputs.flatten(0, -2)
    power = flat.var(dim=0) - noise**2
    uncertain = noise**2 * (2 / len(flat)) ** 0.5
    dead = power < _DEAD * power.median() + 4 * uncertain
    return dead.nonzero()[:, 0] if float(power.median()) > 8 * uncertain else torch.zeros(0, dtype=torch.int64)
