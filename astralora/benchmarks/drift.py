"""A day of inference on chips that drift, with and without compensation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..devices import (
    Clock,
    CompensatedDevice,
    Compensation,
    Device,
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
_Capability = TypeVar("_Capability")

DAY = (*(10.0 ** (power / 2) for power in range(10)), 86400.0)
"""Seconds after the program, half a decade apart, up to a day."""

# Converters and detectors as in the preset "lab", in front of cells of phase-change memory.
_MEMORY = {
    "pcm": True,
    "control_levels": 256,
    "input_levels": 255,
    "output_levels": 255,
    "output_noise_fraction": 0.01,
}


class _NormedDigits(Digits):
    """The digits through two crossbars, with what batch normalisation has found in training behind each.

    This is what drift does harm to: stored means and variances do not fade along with what they are taken from.
    """

    device_layers = ("classifier.1", "classifier.4")

    def classifier(self) -> nn.Sequential:
        """From the features to ten numbers, by two hidden layers."""
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
"""``"digits"``, one crossbar before a rectifier and a classifier, to which a common factor is next to nothing; and
``"digits-normed"``, two with batch normalisation behind each."""


class _Leading:
    """The first outputs of a chip, whose last ones are set to what reference columns are, and not listened to.

    So chips have the same cells, whether or not their columns are used.
    """

    def __init__(self, chip: Device, columns: int, seed: int) -> None:
        self._chip = chip
        self._fixed = reference_controls(chip.spec, columns, seed)
        left = chip.spec.out_features - columns
        self.spec = chip.spec.model_copy(update={"out_features": left, "num_controls": left * chip.spec.in_features})

    def open(self) -> None:
        self._chip.open()

    def close(self) -> None:
        self._chip.close()

    def program(self, controls: Tensor) -> None:
        self._chip.program(torch.cat([controls, self._fixed.to(controls)]))

    def query(self, inputs: Tensor) -> Tensor:
        return self._chip.query(inputs)[:, : self.spec.out_features].clone()

    def capability(self, protocol: type[_Capability]) -> _Capability | None:
        own = self._chip if protocol is Clock else self
        return own if isinstance(own, protocol) else None


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
    """Train digits through crossbars that hold still, program drifting ones once, and use those for a day.

    The former have the flaws of the preset "lab", the latter those of phase-change memory: programming noise and drift
    as measured on such cells. One trained model meets all kinds of compensation, each on chips with the same cells,
    written with the same errors and fading by the same exponents. Time passes on the chips' own clocks, and references
    are looked at with every evaluation.

    Args:
        seeds: of weights, data order and chips.
        tasks: of `MODELS`.
        size: inputs, and as many outputs, of each device layer.
        epochs: of training.
        times: rising, seconds after the program at which the test images are classified.
        vectors: references, for compensation that asks any.
        columns: outputs beside those of each layer, for compensation by columns.
        listener: told every record as it comes.

    Returns:
        Flat records of task, seed, compensation, seconds and test_accuracy; output_error, the layers' root mean square
        distance from what flawless chips would answer to the same, as a share of that; and what it has taken so far, of
        all chips together: programs; vectors and hardware_seconds of references; and columns given up.

    Raises:
        ConfigurationError: there is no such task here.
    """
    for task in tasks:
        if task not in MODELS:
            raise ConfigurationError(f"no drift is measured on the task {task!r}; known are {', '.join(MODELS)}")
    records = []
    for task in tasks:
        for seed in seeds:
            fit = _trained(MODELS[task], seed, size, epochs)
            for kind in (None, *get_args(Compensation)):
                for record in _used(fit, seed, kind, times, vectors, columns):
                    records.append({"task": task, "seed": seed, "compensation": kind or "none", **record})
                    if listener is not None:
                        listener(records[-1])
    return records


def drifting_chip(
    in_features: int, out_features: int, kind: Compensation | None, *, vectors: int, columns: int, seed: int
) -> Device:
    """A crossbar of phase-change memory behind a kind of compensation, or none.

    Of one seed and size all kinds have the same cells, and what is programmed first comes to the same conductances.
    """
    chip: Device = make_device(
        "matvec", in_features=in_features, out_features=out_features + columns, impairments=_MEMORY, seed=seed
    )
    if kind != "columns":
        chip = _Leading(chip, columns, seed)
    if kind is None:
        return chip
    # So often that every evaluation finds a look of its own, but for what follows at once.
    return CompensatedDevice(chip, kind, every_seconds=0.5, vectors=vectors, columns=columns, seed=seed)


def _trained(kind: type[Digits], seed: int, size: int, epochs: int) -> Fit:
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


def _used(
    fit: Fit, seed: int, kind: Compensation | None, times: Sequence[float], vectors: int, columns: int
) -> list[Record]:
    """A day with one kind of compensation, on new chips in the places of those that the model was trained on."""
    sessions = []
    for place, layer in enumerate(fit.layers):
        own = derive_seed(seed, "drift", place)
        options: dict[str, int] = {"vectors": vectors, "columns": columns, "seed": own}
        sessions.append(Session(drifting_chip(layer.in_features, layer.out_features, kind, **options)))
    trained = [layer.session for layer in fit.layers]
    try:
        for layer, session in zip(fit.layers, sessions, strict=True):
            layer.session = session
            session.open()
            # Here for the only time: what an evaluation programs is what the chip holds already.
            session.program(layer.controls.detach())
        clocks = [clock_of(session) for session in sessions]
        starts = [clock.clock_seconds for clock in clocks]
        records = []
        for seconds in times:
            for clock, start in zip(clocks, starts, strict=True):
                clock.wait(max(0.0, start + seconds - clock.clock_seconds))
            accuracy, error = _evaluated(fit)
            asked = [(session.spec, _references(session)) for session in sessions]
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
        for layer, session, before in zip(fit.layers, sessions, trained, strict=True):
            layer.session = before
            session.close()
    return records


def _evaluated(fit: Fit) -> tuple[float, float]:
    """Test accuracy, and how far the layers' answers are from those of flawless chips."""
    missed, meant = 0.0, 0.0

    def compare(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        nonlocal missed, meant
        assert isinstance(layer, BlackBoxLinear)
        wanted = inputs[0] @ layer.controls.view(layer.out_features, layer.in_features).mT
        wanted = wanted if layer.gain is None else layer.gain * wanted
        answers = outputs if layer.bias is None else outputs - layer.bias
        missed += float((answers - wanted).square().sum())
        meant += float(wanted.square().sum())

    handles = [layer.register_forward_hook(compare) for layer in fit.layers]
    try:
        with torch.no_grad():
            _, accuracy = fit.evaluate()
    finally:
        for handle in handles:
            handle.remove()
    return accuracy, sqrt(missed / meant)


def _references(session: Session) -> Usage:
    """What a compensated chip was asked for reference."""
    compensated = session.capability(CompensatedDevice)
    return Usage() if compensated is None else compensated.session.usage_by_purpose.get("drift", Usage())
