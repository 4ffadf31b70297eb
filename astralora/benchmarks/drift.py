"""A day of inference on chips that drift, with and without compensation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any, get_args

import torch
from torch import Tensor, nn

from devices import CompensatedDevice, Compensation, Device, Session, Usage, clock_of, derive_seed, make_device

from ..errors import ConfigurationError
from ..layer import BlackBoxLinear
from ..tasks import Digits
from ..training import RunConfig
from ..training.fit import Fit
from ..training.setup import attach_devices, make_devices

__all__ = ["DAY", "MODELS", "drift"]

Record = dict[str, Any]

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


class _Normed(Digits):
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


MODELS: dict[str, type[Digits]] = {"plain": Digits, "normed": _Normed}
"""``"plain"``, one crossbar before a rectifier and a classifier, to which a common factor is next to nothing; and
``"normed"``, two with batch normalisation behind each."""


def drift(
    seeds: Sequence[int],
    *,
    models: Sequence[str] = tuple(MODELS),
    size: int = 64,
    epochs: int = 10,
    times: Sequence[float] = DAY,
    vectors: int = 16,
    columns: int = 4,
    listener: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Train digits through crossbars that hold still, program drifting ones once, and use those for a day.

    The former have the flaws of the preset "lab", the latter those of phase-change memory: programming noise and drift
    as measured on such cells. One trained model meets all kinds of compensation, and, with the same size of chip, the
    same cells; chips with further columns are others. Time passes on the chips' own clocks, and the references are
    looked at with every evaluation.

    Args:
        seeds: of weights, data order and chips.
        models: of `MODELS`.
        size: inputs, and as many outputs, of each device layer.
        epochs: of training.
        times: rising, seconds after the program at which the test images are classified.
        vectors: references, for compensation that asks any.
        columns: outputs beside those of each layer, for compensation by columns.
        listener: told every record as it comes.

    Returns:
        Flat records of model, seed, compensation, seconds and test_accuracy; output_error, the layers' root mean square
        distance from what flawless chips would answer to the same, as a share of that; and what it has taken so far, of
        all chips together: programs, vectors for reference, and columns.

    Raises:
        ConfigurationError: there is no such model.
    """
    for name in models:
        if name not in MODELS:
            raise ConfigurationError(f"there is no model {name!r}; known are {', '.join(MODELS)}")
    records = []
    for name in models:
        for seed in seeds:
            fit = _trained(MODELS[name], seed, size, epochs)
            for kind in (None, *get_args(Compensation)):
                for record in _used(fit, seed, kind, times, vectors, columns):
                    records.append({"model": name, "seed": seed, "compensation": kind or "none", **record})
                    if listener is not None:
                        listener(records[-1])
    return records


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
    extra = columns if kind == "columns" else 0
    sessions = []
    for place, layer in enumerate(fit.layers):
        chip: Device = make_device(
            "matvec",
            in_features=layer.in_features,
            out_features=layer.out_features + extra,
            impairments=_MEMORY,
            seed=derive_seed(seed, "drift", place),
        )
        if kind is not None:
            # Right before every evaluation but those that follow at once.
            chip = CompensatedDevice(chip, kind, every_seconds=0.5, vectors=vectors, columns=columns, seed=seed)
        sessions.append(Session(chip))
    records = []
    trained = [layer.session for layer in fit.layers]
    try:
        for layer, session in zip(fit.layers, sessions, strict=True):
            layer.session = session
            session.open()
            # Here for the only time: what an evaluation programs is what the chip holds already.
            session.program(layer.controls.detach())
        clocks = [clock_of(session) for session in sessions]
        starts = [clock.clock_seconds for clock in clocks]
        for seconds in times:
            for clock, start in zip(clocks, starts, strict=True):
                clock.wait(max(0.0, start + seconds - clock.clock_seconds))
            accuracy, error = _evaluated(fit)
            records.append(
                {
                    "seconds": seconds,
                    "test_accuracy": accuracy,
                    "output_error": error,
                    "programs": sum(session.usage.programs for session in sessions),
                    "vectors": sum(_references(session) for session in sessions),
                    "columns": extra * len(sessions),
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
        assert layer.gain is not None
        wanted = layer.gain * inputs[0] @ layer.controls.view(layer.out_features, layer.in_features).mT
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


def _references(session: Session) -> int:
    """Vectors that a compensated chip was asked for reference."""
    if not isinstance(session.device, CompensatedDevice):
        return 0
    return session.device.session.usage_by_purpose.get("drift", Usage()).vectors
