"""How well a calibration finds out what a chip is like, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..calibration import calibrate
from ..common.errors import ConfigurationError
from ..devices import Budget, CalibratedTwin, Device, Differentiable, Session, derive_generator, make_device, pull_back

__all__ = ["identification"]

Record = dict[str, Any]

# Converters of 8 bits and noise of 2 % of full scale, as on every chip here.
_CONVERTERS = {"input_levels": 255, "output_levels": 255, "output_noise_fraction": 0.02}
# What is wrong with a mesh, and with chips whose controls each set an entry of their own.
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
    """Calibrate simulated chips, and compare what was found with what they were made with.

    A mesh is off by 0.2 rad and 5 % of its phase shifters' efficiency, other chips by 0.1 rad, 2 % and a crosstalk of
    0.5 %; all have 8 bits in and out, and 2 % of noise.

    Args:
        devices: registered names of simulated kinds.
        sizes: inputs, and as many outputs.
        seeds: of chip and settings.
        programs: the most that a calibration may spend.
        vectors: the same.
        settings: random ones at which gradients are compared.
        batch: vectors of each comparison.
        listener: told every record as it comes.

    Returns:
        Flat records of device, size, seed; of what was spent, programs, vectors and seconds; of fits, starts and
        unexplained, as in `FitQuality`; of the cosine of the control gradient to the chip's own, with the drawing,
        ``before``, and with the twin, ``after``, the least and the mean over settings; and of the constants that lie
        ``beyond`` three of their standard errors from the truth, among ``constants``, None where errors are bounds.
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
    drawing = make_device(name, in_features=size, out_features=size)
    law = _CONVERTERS | (_MESH if drawing.spec.coupling == "dense" else _ENTRIES)
    chip = make_device(name, in_features=size, out_features=size, impairments=law, seed=seed)
    truth: dict[str, Tensor] | None = getattr(chip, "true_constants", None)
    if truth is None or not isinstance(chip, Differentiable):
        raise ConfigurationError(f"{name!r} is no simulated kind: nobody knows what it was made with")
    start = perf_counter()
    with Session(chip) as session:
        record = calibrate(session, budget, seed=seed)
    seconds = perf_counter() - start
    fit = record.fit
    assert fit is not None
    beyond = total = 0
    declared = chip.constants()  # type: ignore[attr-defined]
    for constant, found in record.constants.items():
        true = truth.get(constant, torch.full(found.shape, declared[constant].nominal))
        beyond += int(((found - true).abs() > 3 * record.errors[constant]).sum())
        total += found.numel()
    before = after = torch.full((settings,), torch.nan)
    if fit.fits:
        before, after = _cosines(drawing, chip, CalibratedTwin(record), settings, batch, seed)
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
    drawing: Device, chip: Differentiable, twin: CalibratedTwin, settings: int, batch: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Of the control gradients of the drawing and of the twin, to those of the chip without and with calibration."""
    assert isinstance(drawing, Differentiable)
    generator = derive_generator(seed, "bench", "identification")
    spec = twin.spec
    low, high = drawing.spec.control_range or (-1.0, 1.0)
    reach = spec.input_range or (-1.0, 1.0)
    cosines = []
    for _ in range(settings):
        controls = low + (high - low) * torch.rand(spec.num_controls, generator=generator)
        inputs = reach[0] + (reach[1] - reach[0]) * torch.rand(batch, spec.in_features, generator=generator)
        grads = torch.randn(batch, spec.out_features, generator=generator)
        row = []
        # The drawing beside the chip as it comes, and the twin beside the chip behind its calibration.
        for law, truth in ((drawing, chip), (twin, _Behind(chip, twin))):
            found, _ = pull_back(law, controls, inputs, grads, by_inputs=False)
            true, _ = pull_back(truth, controls, inputs, grads, by_inputs=False)
            assert found is not None
            assert true is not None
            row.append(torch.nn.functional.cosine_similarity(found, true, dim=0))
        cosines.append(torch.stack(row))
    before, after = torch.stack(cosines).unbind(1)
    return before, after


class _Behind:
    """A chip behind its calibration, without noise, for autograd."""

    def __init__(self, chip: Differentiable, twin: CalibratedTwin) -> None:
        self._chip, self._twin = chip, twin

    def transfer(self, controls: Tensor, inputs: Tensor) -> Tensor:
        answer = self._chip.transfer(self._twin.written(controls), self._twin.sent(inputs))
        return self._twin.corrected(answer)
