"""Measure inference on drifting chips for a day, with and without compensation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..devices import (
    Clock,
    CompensatedDevice,
    Compensation,
    Device,
    DeviceSpec,
    DeviceWrapper,
    Purpose,
    Session,
    Usage,
    clock_of,
    derive_seed,
    make_device,
)
from ..devices.wrappers.references import reference_controls
from ..nn.layer import BlackBoxLinear
from ..tasks import Digits
from ..training import RunConfig
from ..training.fit import Fit
from ..training.setup import attach_devices, make_devices

__all__ = ["DAY", "MODELS", "drift", "drifting_chip"]

Record = dict[str, Any]

DAY = (*(10.0 ** (power / 2) for power in range(10)), 86400.0)
"""Seconds after the program, half a decade apart, up to a day."""

# Chips with phase-change memory, and the converters and detectors of the preset "lab".
_MEMORY = {
    "pcm": True,
    "control_levels": 256,
    "input_levels": 255,
    "output_levels": 255,
    "output_noise_fraction": 0.01,
}


class _NormedDigits(Digits):
    """Classify digits through two crossbars, each followed by a batch normalisation with stored statistics.

    Drift harms this model: the signals decay, but the stored means and variances do not.
    """

    device_layers = ("classifier.1", "classifier.4")

    def classifier(self) -> nn.Sequential:
        """Return the layers from the features to ten logits, with two hidden layers."""
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(self.in_features, self.out_features),
            nn.BatchNorm1d(self.out_features),
            nn.ReLU(),
            nn.Linear(self.out_features, self.out_features),
            nn.BatchNorm1d(self.out_features),
            nn.ReLU(),
            nn.Linear(self.out_features, 10),
        )


MODELS: Mapping[str, type[Digits]] = {"digits": Digits, "digits-normed": _NormedDigits}
"""Models by name.

``"digits"`` has one crossbar before a rectifier and a classifier, which tolerate a common factor on all signals.
``"digits-normed"`` has two crossbars, each followed by a batch normalisation.
"""


class _LeadingOutputs(DeviceWrapper):
    """Use only the first outputs of a chip, and program the last ones like reference columns.

    The chip then has the same cells as a chip that uses its last outputs as reference columns.

    Args:
        chip: chip with all outputs.
        columns: number of its last outputs that are not used.
        seed: seed of the reference columns.
    """

    forwards = (Clock,)

    def __init__(self, chip: Device, columns: int, seed: int) -> None:
        super().__init__(chip)
        self._fixed = reference_controls(chip.spec, columns, seed)
        left = chip.spec.out_features - columns
        update = {"out_features": left, "num_controls": left * chip.spec.in_features}
        self._spec = chip.spec.model_copy(update=update)

    @property
    def spec(self) -> DeviceSpec:
        return self._spec

    def program(self, controls: Tensor) -> None:
        self.device.program(torch.cat([controls, self._fixed.to(controls)]))

    def query(self, inputs: Tensor) -> Tensor:
        return self.device.query(inputs)[:, : self.spec.out_features].clone()


def drift(
    seeds: Sequence[int],
    *,
    tasks: Sequence[str] = tuple(MODELS),
    size: int = 64,
    epochs: int = 10,
    times: Sequence[float] = DAY,
    vectors: int = 16,
    columns: int = 4,
    listener: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Train digits through crossbars without drift, program drifting crossbars once, and use them for a day.

    The crossbars of the training have the impairments of the preset "lab". The drifting ones have programming noise and
    drift as measured on phase-change memory. One trained model is tested with every kind of compensation, on chips with
    the same cells, programming errors and drift exponents. Time passes on the chips' own clocks, and references are
    measured with every evaluation.

    Args:
        seeds: seeds of weights, data order and chips.
        tasks: names from `MODELS`.
        size: number of inputs, and of outputs, of each device layer.
        epochs: epochs of training.
        times: increasing times after the program at which the test images are classified, in seconds.
        vectors: reference vectors, for compensation that uses them.
        columns: number of additional outputs of each chip, for compensation by columns.
        listener: called with every record.

    Returns:
        Flat records of task, seed, compensation, seconds and test_accuracy; output_error, the root mean square error of
        the layers' outputs relative to nominal chips; and the operations so far, of all chips together: programs,
        vectors and hardware_seconds of references, and columns used for references.

    Raises:
        ConfigurationError: there is no such model.
    """
    for task in tasks:
        if task not in MODELS:
            raise ConfigurationError(f"no drift is measured on the task {task!r}; known are {', '.join(MODELS)}")
    records = []
    for task in tasks:
        for seed in seeds:
            fit = _trained(MODELS[task], seed, size, epochs)
            for kind in (None, *get_args(Compensation)):
                for record in _evaluate_day(fit, seed, kind, times, vectors, columns):
                    records.append({"task": task, "seed": seed, "compensation": kind or "none", **record})
                    if listener is not None:
                        listener(records[-1])
    return records


def drifting_chip(
    in_features: int, out_features: int, kind: Compensation | None, *, vectors: int, columns: int, seed: int
) -> Device:
    """Make a crossbar of phase-change memory with a kind of compensation, or none.

    Chips of one seed and size have the same cells for all kinds, and the first program leads to the same conductances.
    """
    chip: Device = make_device(
        "matvec", in_features=in_features, out_features=out_features + columns, impairments=_MEMORY, seed=seed
    )
    if kind != "columns":
        chip = _LeadingOutputs(chip, columns, seed)
    if kind is None:
        return chip
    # Measure the references before every evaluation, but not between consecutive queries.
    return CompensatedDevice(chip, kind, every_seconds=0.5, vectors=vectors, columns=columns, seed=seed)


def _trained(kind: type[Digits], seed: int, size: int, epochs: int) -> Fit:
    """Train a model through crossbars without drift."""
    config = RunConfig.load(
        None,
        {
            "seed": seed,
            "epochs": epochs,
            "in_features": size,
            "out_features": size,
            "baseline": False,
            "device": {"name": "matvec", "impairments": "lab"},
        },
    )
    task = kind(size, size)
    sessions = {name: Session(device) for name, device in make_devices(config, task).items()}
    fit = Fit(config, task, task.splits(), attach_devices(config, task, sessions))
    for _ in fit.run():
        pass
    return fit


def _evaluate_day(
    fit: Fit, seed: int, kind: Compensation | None, times: Sequence[float], vectors: int, columns: int
) -> list[Record]:
    """Evaluate a model for a day on new chips, with one kind of compensation."""
    sessions = []
    for place, layer in enumerate(fit.layers):
        own = derive_seed(seed, "drift", place)
        options: dict[str, int] = {"vectors": vectors, "columns": columns, "seed": own}
        sessions.append(Session(drifting_chip(layer.in_features, layer.out_features, kind, **options)))
    trained_sessions = [layer.session for layer in fit.layers]
    try:
        for layer, session in zip(fit.layers, sessions, strict=True):
            layer.session = session
            session.open()
            # This is the only program: an evaluation programs the setting that the chip already holds.
            session.program(layer.controls.detach())
        clocks = [clock_of(session) for session in sessions]
        starts = [clock.clock_seconds for clock in clocks]
        records = []
        for seconds in times:
            for clock, start in zip(clocks, starts, strict=True):
                clock.wait(max(0.0, start + seconds - clock.clock_seconds))
            accuracy, error = _evaluated(fit)
            asked = [(session.spec, _reference_usage(session)) for session in sessions]
            records.append(
                {
                    "seconds": seconds,
                    "test_accuracy": accuracy,
                    "output_error": error,
                    "programs": sum(session.usage.programs for session in sessions),
                    "vectors": sum(usage.vectors for _, usage in asked),
                    "hardware_seconds": sum(usage.hardware_seconds(spec) for spec, usage in asked),
                    "columns": columns * len(sessions) if kind == "columns" else 0,
                }
            )
    finally:
        for layer, session, before in zip(fit.layers, sessions, trained_sessions, strict=True):
            layer.session = before
            session.close()
    return records


def _evaluated(fit: Fit) -> tuple[float, float]:
    """Return the test accuracy, and the error of the layers' outputs relative to nominal chips."""
    error_power, signal_power = 0.0, 0.0

    def compare(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        nonlocal error_power, signal_power
        assert isinstance(layer, BlackBoxLinear)
        ideal = inputs[0] @ layer.controls.view(layer.out_features, layer.in_features).mT
        ideal = ideal if layer.gain is None else layer.gain * ideal
        answers = outputs if layer.bias is None else outputs - layer.bias
        error_power += float((answers - ideal).square().sum())
        signal_power += float(ideal.square().sum())

    handles = [layer.register_forward_hook(compare) for layer in fit.layers]
    try:
        with torch.no_grad():
            _, accuracy = fit.evaluate()
    finally:
        for handle in handles:
            handle.remove()
    return accuracy, sqrt(error_power / signal_power)


def _reference_usage(session: Session) -> Usage:
    """Return the operations that a compensated chip spent on references."""
    compensated = session.device
    if not isinstance(compensated, CompensatedDevice):
        return Usage()
    return compensated.session.usage_by_purpose.get(Purpose.DRIFT, Usage())
