"""Measure the cost of a low-rank surrogate that follows its device during training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from ..devices import Purpose, Session, Usage
from ..nn.attachment import attach
from ..nn.health import StaleGradientWarning
from ..training import RunConfig
from ..training.fit import Fit
from ..training.plan import usage_by_purpose
from ..training.setup import make_devices, make_task

__all__ = ["refresh"]

Record = dict[str, Any]


def refresh(
    devices: Sequence[str],
    seeds: Sequence[int],
    *,
    surrogate: str = "psi",
    impairments: str = "lab",
    epochs: int = 10,
    size: tuple[int, int] = (256, 128),
    listener: Callable[[Record, int], None] | None = None,
) -> list[Record]:
    """Train digits with a surrogate that is updated at every step, as published, or only when needed.

    The gradients of the controls are measured, so that only the surrogates differ.

    Args:
        devices: names of registered devices.
        seeds: seeds of weights, data order, chip and surrogate.
        surrogate: surrogate with a ``refresh`` option.
        impairments: preset of the simulated devices.
        epochs: epochs of training.
        size: inputs and outputs of the device layer.
        listener: called with every record and the number of records in all.

    Returns:
        Flat records of device, seed, surrogate, refresh, test_accuracy, vectors (of the surrogate after startup) and
        health; with updates when needed also rank, refits, splits and rebuilds.
    """
    records: list[Record] = []
    for device in devices:
        for seed in seeds:
            config = _config(device, impairments, seed, epochs, size)
            for refresh_mode in (None, "stability"):
                found = _run(config, surrogate, refresh_mode)
                records.append(
                    {"device": device, "seed": seed, "surrogate": surrogate, "refresh": refresh_mode, **found}
                )
                if listener is not None:
                    listener(records[-1], 2 * len(devices) * len(seeds))
    return records


def _config(device: str, impairments: str, seed: int, epochs: int, size: tuple[int, int]) -> RunConfig:
    """Return the configuration of a run."""
    return RunConfig.model_validate(
        {
            "task": "digits",
            "seed": seed,
            "epochs": epochs,
            "batch_size": 50,
            "in_features": size[0],
            "out_features": size[1],
            "device": {"name": device, "impairments": impairments},
        }
    )


def _run(config: RunConfig, surrogate: str, refresh_mode: str | None) -> Record:
    """Train once, and return the results."""
    task = make_task(config)
    options: dict[str, Any] = {} if refresh_mode is None else {"refresh": refresh_mode}
    with ExitStack() as stack, warnings.catch_warnings():
        # The result shows whether a surrogate is poor.
        warnings.simplefilter("ignore", StaleGradientWarning)
        sessions = {name: stack.enter_context(Session(it)) for name, it in make_devices(config, task).items()}
        model = attach(
            task.model(config.seed),
            sessions,
            seed=config.seed,
            estimator="elementwise",
            surrogate=surrogate,
            **options,
        )
        *_, last = (record for record in Fit(config, task, task.splits(), model).run() if record["event"] == "epoch")
        spent = usage_by_purpose(sessions.values()).get(Purpose.INPUTS, Usage())
        layer = model.get_submodule(task.device_layers[0])
    found = {"test_accuracy": last["test_accuracy"], "vectors": spent.vectors, "health": layer.health}
    schedule = getattr(layer.surrogate, "schedule", None)
    if schedule is not None:
        counts = {f"{kind}s": count for kind, count in schedule.controller.counts.items()}
        found |= {"rank": schedule.controller.rank, **counts}
    return found
