"""From a chip to its calibration record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from devices import (
    Budget,
    Calibration,
    Device,
    DeviceError,
    DeviceSpec,
    Fit,
    Identifiable,
    Model,
    Session,
    Thermometer,
    list_devices,
    make_device,
    make_model,
)

from ..errors import ConfigurationError
from .identification import Identification, identify
from .pairs import Pairs, choose_design, measure_pairs

__all__ = ["calibrate", "calibration_design"]

Event = dict[str, Any]

_PROGRAMS = 64
# Of the settings, one in so many is held out.
_HELD_OUT = 8


def calibrate(
    device: Device,
    budget: Budget | None = None,
    *,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    path: str | Path | None = None,
    measured: DeviceSpec | None = None,
    steps: int = 300,
    seed: int = 0,
    listener: Callable[[Event], None] | None = None,
) -> Calibration:
    """Find the constants of a chip's own law, once, from few settings and vectors.

    The chip is asked for settings all over its range. Its law, as a differentiable simulator has it, is fitted to seven
    eighths of the answers, and has to foresee the others; if it does not, the record says so and has no constants.

    Args:
        device: the chip, or its open session.
        budget: the most that may be spent; 64 programs, and as many vectors as tell all about a linear device, where it
            sets no limit.
        model: a registered device whose law is fitted; the device's own name where None.
        options: of that, such as ``response`` of ``mrr``.
        path: where the record is going to be saved, and nowhere before it is whole. Until then, what was measured
            stands in a file beside it, from which the same call goes on after an interruption.
        measured: what is known of the chip beside that, such as its levels as characterised.
        steps: of the fit, at its first attempt.
        seed: of settings and fit.
        listener: told ``{"event": "measured", "done", "total"}`` and ``{"event": "fitted", "done", "total", "left"}``.

    Returns:
        The record; see its ``fit`` for how well the law fits.

    Raises:
        BudgetExceeded: the session's own budget is smaller; nothing was spent.
        ConfigurationError, DeviceError: no such law, one of another size, or too small a budget; nothing was spent.
    """
    session = device if isinstance(device, Session) else Session(device)
    spec = session.spec
    law = make_model(_model(spec, model, options), spec)
    design = calibration_design(spec, budget, seed)
    began = session.usage
    start = time.perf_counter()
    part = None if path is None else Path(path).with_name(Path(path).name + ".part")
    tell = listener or _silent
    session.open()
    pairs = measure_pairs(
        session,
        design,
        part=part,
        listener=lambda done, total: tell({"event": "measured", "done": done, "total": total}),
    )
    thermometer = session.capability(Thermometer)
    found = identify(
        law,
        pairs,
        spec,
        held_out=max(1, len(design.settings) // _HELD_OUT),
        steps=steps,
        seed=seed,
        listener=lambda done, total, left: tell({"event": "fitted", "done": done, "total": total, "left": left}),
    )
    spent = session.usage - began
    record = Calibration(
        device=spec.name,
        serial_number=spec.serial_number,
        temperature_celsius=None if thermometer is None else thermometer.temperature_celsius,
        promised=spec,
        measured=_measured(measured or spec, pairs),
        model=_model(spec, model, options),
        fit=_fit(found, pairs),
        spent={"programs": spent.programs, "queries": spent.queries, "vectors": spent.vectors},
        wall_seconds=time.perf_counter() - start,
        tensors=_tensors(found, law),
    )
    if path is not None:
        record.save(path)
        assert part is not None
        part.unlink(missing_ok=True)
    return record


def calibration_design(spec: DeviceSpec, budget: Budget | None, seed: int) -> Any:
    """What a calibration of this budget asks for; see `astralora.calibration.pairs.choose_design`."""
    budget = budget or Budget()
    programs = _PROGRAMS if budget.programs is None else budget.programs
    vectors = programs * (4 * spec.in_features + 4) if budget.vectors is None else budget.vectors
    return choose_design(spec, programs, vectors, seed)


def _model(spec: DeviceSpec, name: str | None, options: Mapping[str, Any] | None) -> Model:
    known = {entry.name for entry in list_devices() if entry.factory is not None}
    if name is None and spec.name not in known:
        raise ConfigurationError(
            f"which law does {spec.name!r} follow? Say model=..., such as {', '.join(_laws())}; "
            f"a law of your own is a simulators.Physics that is registered as a device"
        )
    return Model(name=name or spec.name, options=dict(options or {}))


def _silent(_: Event) -> None:
    pass


def _laws() -> list[str]:
    """Registered devices that can be fitted."""
    names = []
    for entry in list_devices():
        if entry.factory is not None and entry.accepts("in_features"):
            try:
                made = make_device(entry.name, in_features=2, out_features=2)
            except DeviceError:
                continue
            if isinstance(made, Identifiable):
                names.append(entry.name)
    return names


def _measured(spec: DeviceSpec, pairs: Pairs) -> DeviceSpec:
    if not len(pairs.again):
        return spec
    rounding = (spec.output_step or 0.0) ** 2 / 12
    noise = max(pairs.noise_std(spec) ** 2 - rounding, 0.0) ** 0.5
    return spec.model_copy(update={"noise_std": noise})


def _fit(found: Identification, pairs: Pairs) -> Fit:
    held_out = len(found.held_out[0])
    return Fit(
        fits=found.fits,
        verdict=found.verdict,
        unexplained=found.unexplained,
        unexplained_error=found.unexplained_error,
        held_out_rms=found.held_out_rms,
        training_rms=found.training_rms,
        noise_std=found.noise_std,
        starts=found.starts,
        settings=len(pairs.settings) - held_out,
        held_out_settings=held_out,
        errors="full" if found.dense else "diagonal",
    )


def _tensors(found: Identification, law: Identifiable) -> dict[str, Tensor]:
    nominal = {name: torch.full(known.shape, known.nominal) for name, known in law.constants().items()}
    return {
        **{f"constants/{name}": value.clone() for name, value in found.constants.items()},
        **{f"errors/{name}": value.clone() for name, value in found.errors.items()},
        **{f"nominal/{name}": value for name, value in nominal.items()},
        "held_out/measured": found.held_out[0].clone(),
        "held_out/foreseen": found.held_out[1].clone(),
        **({} if found.fixed is None else {"fixed": found.fixed}),
        **({} if found.fixed_errors is None else {"fixed_errors": found.fixed_errors}),
    }
