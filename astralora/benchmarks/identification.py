"""Measure the accuracy and cost of calibrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..calibration import calibrate
from ..common.errors import ConfigurationError
from ..devices import (
    Budget,
    CalibratedTwin,
    Device,
    Differentiable,
    Identifiable,
    Session,
    capability_of,
    derive_generator,
    make_device,
    pull_back,
)

__all__ = ["identification"]

Record = dict[str, Any]

# Converters of 8 bits, and noise of 2 % of full scale, of every chip.
_CONVERTERS = {"input_levels": 255, "output_levels": 255, "output_noise_fraction": 0.02}
# Flaws of a mesh, and of elementwise chips.
_MESH = {"phase_bias_std": 0.2, "gamma_std": 0.05}
_ENTRIES = {"phase_bias_std": 0.1, "gamma_std": 0.02, "crosstalk": 0.005}


def identification(
    devices: Sequence[str],
    sizes: Sequence[int],
    seeds: Sequence[int],
    *,
    programs: int = 64,
    vectors: int = 4100,
    settings: int = 5,
    batch: int = 256,
    listener: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Calibrate simulated chips, and compare the constants with the true ones.

    A mesh has phase errors of 0.2 rad and errors of 5 % in the efficiency of phase shifters. Other chips have errors of
    0.1 rad and 2 %, and a crosstalk of 0.5 %. All have 8 bits in and out, and 2 % of noise.

    Args:
        devices: names of simulated devices.
        sizes: number of inputs, and of outputs.
        seeds: seeds of chip and settings.
        programs: largest number of programs of a calibration.
        vectors: largest number of vectors of a calibration.
        settings: number of random settings at which gradients are compared.
        batch: vectors of each comparison.
        listener: called with every record.

    Returns:
        Flat records with device, size and seed; programs, vectors and seconds of the calibration; fits, starts and
        unexplained, as in `FitQuality`. Cosines compare the control gradient of the chip with the gradient of the
        nominal device (``before``) and of the twin (``after``); mean and smallest value over the settings.
        ``constants`` is the number of constants, and ``beyond`` the number of those that are more than three standard
        errors from the truth; None if the errors are lower bounds.
    """
    records = []
    for seed in seeds:
        for size in sizes:
            for name in devices:
                records.append(_identify(name, size, seed, Budget(programs=programs, vectors=vectors), settings, batch))
                if listener is not None:
                    listener(records[-1])
    return records


def _identify(name: str, size: int, seed: int, budget: Budget, settings: int, batch: int) -> Record:
    """Calibrate one chip, and return the record."""
    nominal = make_device(name, in_features=size, out_features=size)
    law = _CONVERTERS | (_MESH if nominal.spec.coupling == "dense" else _ENTRIES)
    chip = make_device(name, in_features=size, out_features=size, impairments=law, seed=seed)
    truth: dict[str, Tensor] | None = getattr(chip, "true_constants", None)
    response, identifiable = capability_of(chip, Differentiable), capability_of(chip, Identifiable)
    if truth is None or response is None or identifiable is None:
        raise ConfigurationError(f"{name!r} is no simulated kind, so its true constants are unknown; choose another")
    start = perf_counter()
    with Session(chip) as session:
        record = calibrate(session, budget, seed=seed)
    seconds = perf_counter() - start
    fit = record.fit
    assert fit is not None
    beyond = total = 0
    declared = identifiable.constants()
    for constant, found in record.constants.items():
        true = truth.get(constant, torch.full(found.shape, declared[constant].nominal))
        beyond += int(((found - true).abs() > 3 * record.errors[constant]).sum())
        total += found.numel()
    before = after = torch.full((settings,), torch.nan)
    if fit.fits:
        before, after = _cosines(nominal, response, CalibratedTwin(record), settings, batch, seed)
    return {
        "device": name,
        "size": size,
        "seed": seed,
        "programs": record.spent["programs"],
        "vectors": record.spent["vectors"],
        "seconds": seconds,
        "fits": fit.fits,
        "starts": fit.starts,
        "unexplained": fit.unexplained,
        "before": float(before.mean()),
        "before_least": float(before.min()),
        "after": float(after.mean()),
        "after_least": float(after.min()),
        "beyond": beyond if fit.errors == "full" else None,
        "constants": total,
    }


def _cosines(
    nominal: Device, chip: Differentiable, twin: CalibratedTwin, settings: int, batch: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the cosines between control gradients: of nominal device and chip, and of twin and calibrated chip."""
    nominal_law = capability_of(nominal, Differentiable)
    assert nominal_law is not None
    generator = derive_generator(seed, "bench", "identification")
    spec = twin.spec
    low, high = nominal.spec.control_range or (-1.0, 1.0)
    reach = spec.input_range or (-1.0, 1.0)
    cosines = []
    for _ in range(settings):
        controls = low + (high - low) * torch.rand(spec.num_controls, generator=generator)
        inputs = reach[0] + (reach[1] - reach[0]) * torch.rand(batch, spec.in_features, generator=generator)
        grads = torch.randn(batch, spec.out_features, generator=generator)
        row = []
        # Compare the nominal device with the raw chip, and the twin with the calibrated chip.
        for law, truth in ((nominal_law, chip), (twin, _CalibratedChip(chip, twin))):
            found, _ = pull_back(law, controls, inputs, grads, by_inputs=False)
            true, _ = pull_back(truth, controls, inputs, grads, by_inputs=False)
            assert found is not None
            assert true is not None
            row.append(torch.nn.functional.cosine_similarity(found, true, dim=0))
        cosines.append(torch.stack(row))
    before, after = torch.stack(cosines).unbind(1)
    return before, after


class _CalibratedChip:
    """Compute the outputs of a calibrated chip without noise, with autograd."""

    def __init__(self, chip: Differentiable, twin: CalibratedTwin) -> None:
        self._chip, self._twin = chip, twin

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        answer = self._chip.transfer(self._twin.written(controls), self._twin.sent(inputs))
        return self._twin.corrected(answer)
