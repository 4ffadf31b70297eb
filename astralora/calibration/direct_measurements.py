"""Measure properties of a chip directly, before a law is fitted, and convert them for the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..characterisation import Characterisation, characterisation_cost, characterise
from ..characterisation.contents import read_characterisation
from ..characterisation.measurement import Cost
from ..common.errors import ConfigurationError
from ..devices import Budget, CalibrationMismatch, DeviceSpec, Session
from ..devices.files import file_name, remove_file
from .unfinished import REMEDY, read_unfinished, write_unfinished

__all__ = [
    "SHARE",
    "DirectMeasurements",
    "check_same_device",
    "dead_outputs",
    "finding_records",
    "finding_tensors",
    "unclaimed_properties",
]

SHARE = 0.25
"""Largest share of a calibration's programs and vectors that is spent on direct measurements."""

# Outputs with less than this share of the median power are dead.
_DEAD_SHARE = 0.02


class DirectMeasurements:
    """Measure a chip without a law, and keep the results until the record is written.

    Args:
        session: session of the chip.
        budget: largest numbers of programs and vectors to spend on these measurements.
        measurements: names of the measurements; all if None.
        seed: seed of the measurements.
        path: file that keeps the results until the record is written.

    Attributes:
        reserved: largest cost of the measurements.
        cost: largest remaining cost; 0 if an interrupted calibration has already measured.
        kept: results that an interrupted calibration has saved; None if there are none.
    """

    def __init__(
        self, session: Session, budget: Budget, measurements: list[str] | None, seed: int, path: Path | None
    ) -> None:
        self._session, self._budget, self._only, self._seed = session, budget, measurements, seed
        self._path = path
        self.reserved = self.cost = Cost(0, 0)
        self.kept: Characterisation | None = None
        self._wanted = measurements is None or bool(measurements)
        if self._wanted:
            self.reserved = characterisation_cost(session, budget, only=measurements, seed=seed)
            self.kept = self._load()
            self.cost = self.reserved if self.kept is None else Cost(0, 0)

    def find(self) -> Characterisation | None:
        """Return the results, measured now or loaded from the file; None if no measurement is chosen."""
        if not self._wanted:
            return None
        found = self.kept
        if found is None:
            found = characterise(self._session, self._budget, only=self._only, seed=self._seed)
            if self._path is not None:
                write_unfinished(self._path, json.loads(found.model_dump_json()))
        return found

    def forget(self) -> None:
        """Delete the file with the results."""
        if self._path is not None:
            remove_file(self._path)

    def _load(self) -> Characterisation | None:
        """Load the results from the file; None if there is no file."""
        if self._path is None or not self._path.exists():
            return None
        try:
            found = read_characterisation(read_unfinished(self._path))
        except ConfigurationError:
            raise
        except ValueError as error:
            raise ConfigurationError(f"{file_name(self._path)} is damaged: {error}; {REMEDY}") from None
        try:
            check_same_device(found, self._session.spec)
        except CalibrationMismatch:
            raise ConfigurationError(
                f"{file_name(self._path)} holds measurements of another chip; connect that chip, or delete the file"
            ) from None
        return found


def unclaimed_properties(spec: DeviceSpec) -> list[str]:
    """Return the measurements of properties that a spec does not claim: noise and codes, if it claims no noise.

    Dead outputs, stuck controls, dark levels and curves follow from the fit of the law.
    """
    if spec.noise_std > 0:
        return []
    wanted = ["noise", "converters"]
    if spec.linear and spec.input_levels is None:
        wanted.append("ramp")
    if spec.linear and spec.coupling == "elementwise" and spec.control_levels is None:
        wanted.append("wobble")
    return wanted


def check_same_device(known: Characterisation, spec: DeviceSpec) -> None:
    """Refuse a characterisation of another device.

    Raises:
        CalibrationMismatch: the characterisation is of another device.
    """
    for what in ("serial_number", "name", "in_features", "out_features", "num_controls"):
        theirs, ours = getattr(known.promised, what), getattr(spec, what)
        if theirs != ours:
            raise CalibrationMismatch(
                f"the characterisation was measured on a device with {what} {theirs}, and this device has {ours}; "
                f"characterise this device",
                device=spec.name,
                operation="calibrate",
            )


def finding_records(known: Characterisation | None) -> tuple[dict[str, Any], ...]:
    """Return the findings for the record, without their data for plots."""
    if known is None:
        return ()
    return tuple(finding.model_dump(mode="json", exclude={"data"}) for finding in known.findings)


def finding_tensors(known: Characterisation | None) -> dict[str, Tensor]:
    """Return the data of some findings as tensors: noise and dark level by output, transfer curve, crosstalk map."""
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
    """Return the dead outputs, from answers at many settings and vectors.

    Args:
        outputs: answers, (settings, vectors, out_features).
        noise: standard deviation of an answer.
    """
    flat = outputs.flatten(0, -2)
    power = flat.var(dim=0) - noise**2
    uncertain = noise**2 * (2 / len(flat)) ** 0.5
    dead = power < _DEAD_SHARE * power.median() + 4 * uncertain
    return dead.nonzero()[:, 0] if float(power.median()) > 8 * uncertain else torch.zeros(0, dtype=torch.int64)
