"""Calibrate a chip: measure it, and fit the constants of its law."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import hypot
from pathlib import Path
from typing import Any

from ..characterisation import Characterisation
from ..characterisation.measurement import Cost
from ..common.errors import ConfigurationError
from ..devices import (
    Budget,
    Calibration,
    Device,
    DeviceError,
    DeviceSpec,
    FittedModel,
    Identifiable,
    Session,
    Thermometer,
    capability_of,
    list_devices,
    make_device,
    make_model,
)
from ..devices.files import remove_file
from .costs import CostRecord, Spent
from .direct_measurements import (
    SHARE,
    DirectMeasurements,
    check_same_device,
    finding_records,
    finding_tensors,
    unclaimed_properties,
)
from .identification import Identification, identify
from .pairs import Design, Pairs, choose_design, measure_pairs
from .record import fit_quality, fit_tensors, spec_with_noise

__all__ = ["NO_LAW", "calibrate", "calibration_design"]

Event = dict[str, Any]

NO_LAW = "none"
"""Value of ``model`` for a calibration without a law."""

_PROGRAMS = 64
# One of this many settings is held out.
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
    """Fit the constants of a chip's law to the answers at few settings and vectors.

    First, properties that the spec does not claim are measured without a law: if the spec claims no noise, at most a
    quarter of the budget is spent on noise and converter codes. Then the chip is queried at settings over its whole
    range. Its law, a differentiable simulator, is fitted to seven eighths of the answers and must predict the others.
    If it does not, the record says so and has no constants.

    For a chip of unknown law, ``model="none"`` spends the whole budget on direct measurements. The record can then
    correct the dark level of each output of the chip. It cannot correct input and output gains, which cannot be
    separated from the transfer matrix without a law.

    Args:
        device: chip or its open session.
        budget: largest numbers of programs and vectors to spend; by default 64 programs, and as many vectors as
            determine a linear device.
        model: name of a registered device whose law is fitted, or ``"none"``; the device's own name if None.
        options: options of that device, such as ``response`` of ``mrr``.
        path: path of the record. Until it is written, measured data are stored in files beside it, and the same call
            resumes from them. The budget covers all parts together. The record holds the cost of all parts; after a
            kill, this is a lower bound.
        characterise: whether to measure noise, converters and channels first; None means only if the spec claims no
            noise.
        known: characterisation of the chip, used instead of measuring again.
        steps: steps of the first fit.
        seed: seed of settings and fit.
        listener: called with "event" ("measured" or "fitted"), "done", "total", and "left" after a fit.

    Returns:
        The record; ``fit`` holds the quality of the fit, ``findings`` the direct measurements.

    Raises:
        BudgetExceeded: the session's own budget is too small, or an interruption has left too little of ``budget``;
            nothing is spent.
        CalibrationMismatch: ``known`` belongs to another chip.
        ConfigurationError, DeviceError: the law is unknown or has another size, the budget is too small, or a file of
            an interrupted calibration is damaged; nothing is spent.
    """
    session = device if isinstance(device, Session) else Session(device)
    run = _CalibrationRun(session, seed, None if path is None else Path(path))
    run.choose_law(model, options)
    run.plan(budget, characterise, known)
    session.open()
    run.afford()
    with run.costs.saved_after_errors():
        run.measure_directly()
        run.fit_law(steps, listener)
        return run.finish()


class _CalibrationRun:
    """Run one calibration step by step, in the order of the methods.

    Args:
        session: session of the chip.
        seed: seed of settings and fit.
        path: path of the record.

    Attributes:
        costs: cost of all parts of the calibration.
    """

    costs: CostRecord

    def __init__(self, session: Session, seed: int, path: Path | None) -> None:
        self._session, self._seed, self._path = session, seed, path
        self._spec = session.spec
        self._model: FittedModel | None = None
        self._law: Identifiable | None = None
        self._fitted: tuple[Pairs, Identification] | None = None

    def choose_law(self, name: str | None, options: Mapping[str, Any] | None) -> None:
        """Choose the law to fit; None for ``"none"``."""
        if name != NO_LAW:
            self._model = _choose_model(self._spec, name, options)
            self._law = make_model(self._model, self._spec)

    def plan(self, budget: Budget | None, characterise: bool | None, known: Characterisation | None) -> None:
        """Divide the budget between direct measurements and the law."""
        if known is not None:
            check_same_device(known, self._spec)
        self._known = known
        self.costs = CostRecord(self._session, _beside(self._path, ".cost.part"), self._seed, budget or Budget())
        whole = _complete(self._spec, budget)
        share = self.costs.remaining if self._law is None else _scaled(whole, SHARE)
        measurements = _choose_measurements(self._spec, self._law is None, characterise, known)
        kept = _beside(self._path, ".known.part")
        try:
            self._direct = DirectMeasurements(self._session, share, measurements, self._seed, kept)
        except ConfigurationError:
            if self._law is None or characterise is not None:
                raise
            # The user did not request direct measurements, and the budget is better spent on the law.
            self._direct = DirectMeasurements(self._session, share, [], self._seed, None)
        self._rest = Budget() if self._law is None else _less(whole, self._direct.reserved)

    def afford(self) -> None:
        """Refuse the run if the session's budget does not cover both direct measurements and pairs; nothing is spent.

        Raises:
            BudgetExceeded: the session's budget is too small.
        """
        cost = self._direct.cost
        if self._law is not None and cost.programs:
            design = calibration_design(self._spec, self._rest, self._seed)
            programs, vectors = cost.programs + len(design.settings), cost.vectors + design.vectors
            self._session.afford("calibrate", programs=programs, vectors=vectors)

    def measure_directly(self) -> None:
        """Measure the properties that need no law, unless they are known."""
        if self._direct.kept is not None:
            spent = self._direct.kept.spent
            self.costs.include(Spent(**spent, wall_seconds=self._direct.kept.wall_seconds))
        self._known = self._known or self._direct.find()
        if self._known is not None:
            self.costs.save()
        if self._known is not None:
            self._spec = self._known.measured

    def fit_law(self, steps: int, listener: Callable[[Event], None] | None) -> None:
        """Measure pairs of inputs and outputs, and fit the law to them."""
        if self._law is None:
            return
        report = listener or _ignore
        spec, noise = self._spec, None
        if self._known is not None and "noise_std" in self._known:
            noise = max(hypot(spec.noise_std, (spec.output_step or 0.0) / 12**0.5), 1e-12)

        def show(done: int, total: int) -> None:
            self.costs.save()
            report({"event": "measured", "done": done, "total": total})

        pairs = measure_pairs(
            self._session,
            calibration_design(spec, self._rest, self._seed),
            spec=spec,
            part=_beside(self._path, ".part"),
            costs=self.costs,
            listener=show,
        )
        found = identify(
            self._law,
            pairs,
            spec,
            held_out=max(1, len(pairs.settings) // _HELD_OUT),
            noise=noise,
            steps=steps,
            seed=self._seed,
            listener=lambda done, total, left: report({"event": "fitted", "done": done, "total": total, "left": left}),
        )
        self._fitted = pairs, found

    def finish(self) -> Calibration:
        """Assemble the record, and save it if there is a path."""
        session = self._session
        thermometer = session.capability(Thermometer)
        spent = self.costs.total
        fit, measured, tensors = None, self._spec, finding_tensors(self._known)
        if self._fitted is not None and self._law is not None:
            pairs, found = self._fitted
            measured = spec_with_noise(self._spec, pairs, found)
            fit = fit_quality(found, pairs)
            tensors |= fit_tensors(found, self._law, pairs, measured)
        record = Calibration(
            device=self._spec.name,
            serial_number=self._spec.serial_number,
            temperature_celsius=None if thermometer is None else thermometer.temperature_celsius,
            promised=session.spec,
            measured=measured,
            model=self._model,
            fit=fit,
            findings=finding_records(self._known),
            spent={"programs": spent.programs, "queries": spent.queries, "vectors": spent.vectors},
            wall_seconds=spent.wall_seconds,
            tensors=tensors,
        )
        if self._path is not None:
            record.save(self._path)
            self._direct.forget()
            remove_file(self._path.with_name(self._path.name + ".part"))
            self.costs.forget()
        return record


def _choose_measurements(
    spec: DeviceSpec, lawless: bool, characterise: bool | None, known: Characterisation | None
) -> list[str] | None:
    """Return the names of the direct measurements, or None for all."""
    if known is not None or characterise is False:
        return []
    if lawless:
        return None
    if characterise is None:
        return unclaimed_properties(spec)
    return ["noise", "converters", *(["survey", "ramp", "wobble"] if spec.linear else [])]


def _complete(spec: DeviceSpec, budget: Budget | None) -> Budget:
    """Return the budget with the default for each limit that it does not set."""
    budget = budget or Budget()
    programs = _PROGRAMS if budget.programs is None else budget.programs
    vectors = programs * (4 * spec.in_features + 4) if budget.vectors is None else budget.vectors
    return Budget(programs=programs, vectors=vectors)


def _scaled(budget: Budget, share: float) -> Budget:
    """Return a share of a budget."""
    assert budget.programs is not None
    assert budget.vectors is not None
    return Budget(programs=int(share * budget.programs), vectors=int(share * budget.vectors))


def _less(budget: Budget, cost: Cost) -> Budget:
    """Return a budget minus a cost."""
    assert budget.programs is not None
    assert budget.vectors is not None
    return Budget(programs=budget.programs - cost.programs, vectors=budget.vectors - cost.vectors)


def _beside(path: Path | None, suffix: str) -> Path | None:
    """Return a path with a suffix added to its name."""
    return None if path is None else path.with_name(path.name + suffix)


def calibration_design(spec: DeviceSpec, budget: Budget | None, seed: int) -> Design:
    """Return the settings and vectors of a calibration with this budget; see `choose_design`."""
    whole = _complete(spec, budget)
    assert whole.programs is not None
    assert whole.vectors is not None
    return choose_design(spec, whole.programs, whole.vectors, seed)


def _choose_model(spec: DeviceSpec, name: str | None, options: Mapping[str, Any] | None) -> FittedModel:
    """Return the description of the law to fit.

    Raises:
        ConfigurationError: no name is given, and the device's own name is not registered.
    """
    known = {entry.name for entry in list_devices() if entry.factory is not None}
    if name is None and spec.name not in known:
        raise ConfigurationError(
            f"no law is known for {spec.name!r}; name the law as the model, such as {', '.join(_fittable_devices())}, "
            f"or '{NO_LAW}' to measure without a law; for a law of your own, register a simulators.Physics as a device"
        )
    return FittedModel(name=name or spec.name, options=dict(options or {}))


def _ignore(_: Event) -> None:
    """Do nothing with an event."""


def _fittable_devices() -> list[str]:
    """Return the names of registered devices whose law can be fitted."""
    names = []
    for entry in list_devices():
        if entry.factory is not None and entry.accepts("in_features"):
            try:
                made = make_device(entry.name, in_features=2, out_features=2)
            except DeviceError:
                continue
            if capability_of(made, Identifiable) is not None:
                names.append(entry.name)
    return names
