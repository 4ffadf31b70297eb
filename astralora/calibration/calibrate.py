"""From a chip to its calibration record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import hypot
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..characterisation import Characterisation
from ..characterisation.measurement import Cost
from ..common.errors import ConfigurationError
from ..devices import (
    Budget,
    Calibration,
    Device,
    DeviceError,
    DeviceSpec,
    FitQuality,
    FittedModel,
    Identifiable,
    Session,
    Thermometer,
    list_devices,
    make_device,
    make_model,
)
from .identification import Identification, identify
from .knowledge import (
    SHARE,
    Knowledge,
    check_known,
    dead_outputs,
    findings_of,
    tensors_of,
    unpromised,
)
from .pairs import Design, Pairs, choose_design, measure_pairs

__all__ = ["NO_LAW", "calibrate", "calibration_design"]

Event = dict[str, Any]

NO_LAW = "none"
"""In the place of a law's name: only what can be measured without one."""

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
    characterise: bool | None = None,
    known: Characterisation | None = None,
    steps: int = 300,
    seed: int = 0,
    listener: Callable[[Event], None] | None = None,
) -> Calibration:
    """Find the constants of a chip's own law, once, from few settings and vectors.

    First comes what can be measured without a law and is not promised: where the spec tells no noise, a quarter of the
    budget at most goes into noise and the codes of converters. Then the chip is asked for settings all over its range.
    Its law, as a differentiable simulator has it, is fitted to seven eighths of the answers, and has to foresee the
    others; if it does not, the record says so and has no constants.

    Of a chip whose law nobody knows, ``model="none"`` records what can be measured directly, for the whole budget. Used
    with the chip, such a record corrects the dark level of each output. Gains of inputs and outputs cannot be told from
    the transfer matrix between them, and are not corrected.

    Args:
        device: the chip, or its open session.
        budget: the most that may be spent; 64 programs, and as many vectors as tell all about a linear device, where it
            sets no limit.
        model: a registered device whose law is fitted, or ``"none"``; the device's own name where None.
        options: of that, such as ``response`` of ``mrr``.
        path: where the record is going to be saved, and nowhere before it is whole. Until then, what was measured
            stands in files beside it, from which the same call goes on after an interruption.
        characterise: whether to measure noise, converters and channels first; where None, if the spec tells no noise.
        known: a characterisation of the chip, which then is not made again.
        steps: of the fit, at its first attempt.
        seed: of settings and fit.
        listener: told ``{"event": "measured", "done", "total"}`` and ``{"event": "fitted", "done", "total", "left"}``.

    Returns:
        The record; see its ``fit`` for how well the law fits, and ``findings`` for what was measured directly.

    Raises:
        BudgetExceeded: the session's own budget is smaller; nothing was spent.
        CalibrationMismatch: what is known is another chip's.
        ConfigurationError, DeviceError: no such law, one of another size, or too small a budget; nothing was spent.
    """
    session = device if isinstance(device, Session) else Session(device)
    spec, began, start = session.spec, session.usage, time.perf_counter()
    named = None if model == NO_LAW else _model(spec, model, options)
    law = None if named is None else make_model(named, spec)
    if known is not None:
        check_known(known, spec)
    target = None if path is None else Path(path)
    measurements = _wanted(spec, law is None, characterise, known)
    share = (budget or Budget()) if law is None else _share(_whole(spec, budget))
    try:
        knowledge = Knowledge(session, share, measurements, seed, _beside(target, ".known.part"))
    except ConfigurationError:
        if law is None or characterise is not None:
            raise
        # Nobody has asked for it, and what it would take is better spent on the law.
        knowledge = Knowledge(session, share, [], seed, None)
    rest = Budget() if law is None else _less(_whole(spec, budget), knowledge.reserved)
    session.open()
    if law is not None and knowledge.cost.programs:
        # Both have to be within the budget, before either has begun.
        design = calibration_design(spec, rest, seed)
        programs, vectors = knowledge.cost.programs + len(design.settings), knowledge.cost.vectors + design.vectors
        session.afford("calibrate", programs=programs, vectors=vectors)
    known = known or knowledge.find()
    noise = None
    if known is not None:
        spec = known.measured
        noise = max(hypot(spec.noise_std, (spec.output_step or 0.0) / 12**0.5), 1e-12) if "noise_std" in known else None
    found = pairs = None
    if law is not None:
        pairs, found = _identify(session, law, spec, rest, target, steps, seed, listener, noise)
    thermometer = session.capability(Thermometer)
    spent = session.usage - began
    measured = spec if found is None or pairs is None else _measured(spec, pairs, found)
    record = Calibration(
        device=spec.name,
        serial_number=spec.serial_number,
        temperature_celsius=None if thermometer is None else thermometer.temperature_celsius,
        promised=session.spec,
        measured=measured,
        model=named,
        fit=None if found is None or pairs is None else _fit(found, pairs),
        findings=findings_of(known),
        spent={"programs": spent.programs, "queries": spent.queries, "vectors": spent.vectors},
        wall_seconds=time.perf_counter() - start,
        tensors={
            **tensors_of(known),
            **({} if found is None or law is None or pairs is None else _tensors(found, law, pairs, measured)),
        },
    )
    if target is not None:
        record.save(target)
        knowledge.forget()
        part = _beside(target, ".part")
        assert part is not None
        part.unlink(missing_ok=True)
    return record


def _wanted(
    spec: DeviceSpec, lawless: bool, characterise: bool | None, known: Characterisation | None
) -> list[str] | None:
    """What to measure directly: names, or None for all."""
    if known is not None or characterise is False:
        return []
    if lawless:
        return None
    if characterise is None:
        return unpromised(spec)
    return ["noise", "converters", *(["survey", "ramp", "wobble"] if spec.linear else [])]


def _identify(
    session: Session,
    law: Identifiable,
    spec: DeviceSpec,
    budget: Budget,
    path: Path | None,
    steps: int,
    seed: int,
    listener: Callable[[Event], None] | None,
    noise: float | None,
) -> tuple[Pairs, Identification]:
    """Measure pairs and fit the law."""
    tell = listener or _silent
    design = calibration_design(spec, budget, seed)
    pairs = measure_pairs(
        session,
        design,
        spec=spec,
        part=_beside(path, ".part"),
        listener=lambda done, total: tell({"event": "measured", "done": done, "total": total}),
    )
    found = identify(
        law,
        pairs,
        spec,
        held_out=max(1, len(design.settings) // _HELD_OUT),
        noise=noise,
        steps=steps,
        seed=seed,
        listener=lambda done, total, left: tell({"event": "fitted", "done": done, "total": total, "left": left}),
    )
    return pairs, found


def _whole(spec: DeviceSpec, budget: Budget | None) -> Budget:
    """The budget, with its usual size where it sets no limit."""
    budget = budget or Budget()
    programs = _PROGRAMS if budget.programs is None else budget.programs
    vectors = programs * (4 * spec.in_features + 4) if budget.vectors is None else budget.vectors
    return Budget(programs=programs, vectors=vectors)


def _share(budget: Budget) -> Budget:
    assert budget.programs is not None
    assert budget.vectors is not None
    return Budget(programs=int(SHARE * budget.programs), vectors=int(SHARE * budget.vectors))


def _less(budget: Budget, cost: Cost) -> Budget:
    assert budget.programs is not None
    assert budget.vectors is not None
    return Budget(programs=budget.programs - cost.programs, vectors=budget.vectors - cost.vectors)


def _beside(path: Path | None, suffix: str) -> Path | None:
    return None if path is None else path.with_name(path.name + suffix)


def calibration_design(spec: DeviceSpec, budget: Budget | None, seed: int) -> Design:
    """What a calibration of this budget asks for; see `astralora.calibration.pairs.choose_design`."""
    whole = _whole(spec, budget)
    assert whole.programs is not None
    assert whole.vectors is not None
    return choose_design(spec, whole.programs, whole.vectors, seed)


def _model(spec: DeviceSpec, name: str | None, options: Mapping[str, Any] | None) -> FittedModel:
    known = {entry.name for entry in list_devices() if entry.factory is not None}
    if name is None and spec.name not in known:
        raise ConfigurationError(
            f"which law does {spec.name!r} follow? Say model=..., such as {', '.join(_laws())}; "
            f"a law of your own is a simulators.Physics that is registered as a device; model='none' measures what can "
            f"be measured without one"
        )
    return FittedModel(name=name or spec.name, options=dict(options or {}))


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


def _measured(spec: DeviceSpec, pairs: Pairs, found: Identification) -> DeviceSpec:
    """With the noise that answers have: what a law that fits leaves of thousands, else of a few asked for twice.

    What it leaves and repeats do not show is the law's own error, or time's: no noise.
    """
    total = found.noise_std
    samples = pairs.again.numel()
    if found.fits and (not samples or found.training_rms < total * (1 + 3 / (2 * samples) ** 0.5)):
        total = found.training_rms
    rounding = (spec.output_step or 0.0) ** 2 / 12
    return spec.model_copy(update={"noise_std": max(total**2 - rounding, 0.0) ** 0.5})


def _fit(found: Identification, pairs: Pairs) -> FitQuality:
    held_out = len(found.held_out[0])
    return FitQuality(
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


def _tensors(found: Identification, law: Identifiable, pairs: Pairs, measured: DeviceSpec) -> dict[str, Tensor]:
    # As they differ by what the law leaves, and as large as noise is on average: the law's own error is none.
    average = float(found.noise_by_output.square().mean().sqrt())
    by_output = found.noise_by_output * (measured.noise_std / average if average > 0 else 1.0)
    nominal = {name: torch.full(known.shape, known.nominal) for name, known in law.constants().items()}
    return {
        **{f"constants/{name}": value.clone() for name, value in found.constants.items()},
        **{f"errors/{name}": value.clone() for name, value in found.errors.items()},
        **{f"nominal/{name}": value for name, value in nominal.items()},
        "dead_outputs": dead_outputs(pairs.outputs, pairs.noise_std(measured)),
        **({"noise/by_output": by_output} if found.fits else {}),
        "held_out/measured": found.held_out[0].clone(),
        "held_out/foreseen": found.held_out[1].clone(),
        **({} if found.fixed is None else {"fixed": found.fixed}),
        **({} if found.fixed_errors is None else {"fixed_errors": found.fixed_errors}),
    }
