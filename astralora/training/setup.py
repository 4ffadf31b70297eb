"""Make the task, devices and model of a configuration."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..devices import CalibratedDevice, Device, DeviceError, Session, derive_seed, offer_device
from ..nn.attachment import ATTACH_OPTIONS, attach, layer_width
from ..nn.methods import ExpensiveGradientWarning, choose_method
from ..tasks import TASKS, Task
from .config import DeviceConfig, RunConfig

__all__ = ["attach_devices", "check_method", "make_devices", "make_task"]


def make_task(config: RunConfig) -> Task:
    """Make the task, with device layers of the configured width."""
    return TASKS.make(config.task, in_features=config.in_features, out_features=config.out_features)


def make_devices(config: RunConfig, task: Task) -> dict[str, Device]:
    """Make a closed device for each of the task's device layers, by the layer's name.

    Width, impairments and seed are passed to each factory that accepts them. Impairments and a seed that the user has
    set are always passed, so that a factory that does not accept them raises an error. `attach` later compares the
    width of a chip with its layer.

    Raises:
        DeviceError: there is no such device, or it does not accept an option.
    """
    model = task.model(config.seed)
    return {
        name: _make_device(config, layer_width(model.get_submodule(name)), name if place else None)
        for place, name in enumerate(task.device_layers)
    }


def _make_device(config: RunConfig, width: tuple[int, int], name: str | None) -> Device:
    """Make the closed device of one layer."""
    chosen = config.device
    seed = config.seed if chosen.seed is None else chosen.seed
    offered: dict[str, Any] = {
        "in_features": width[0],
        "out_features": width[1],
        "impairments": chosen.impairments,
        # Each layer has a different chip.
        "seed": seed if name is None else derive_seed(seed, name),
    }
    explicit = {"impairments"} if chosen.impairments != DeviceConfig().impairments else set()
    if chosen.seed is not None:
        explicit.add("seed")
    required = {name: offered.pop(name) for name in explicit}
    for option in (offered.keys() | required.keys()) & chosen.options.keys():
        raise DeviceError(
            f"the option {option!r} has a key of its own in the configuration; set it there",
            device=chosen.name,
            operation="open",
        )
    device = offer_device(chosen.name, offered, **required, **chosen.options)
    return device if chosen.calibration is None else CalibratedDevice(device, chosen.calibration, retry=config.retry)


def check_method(config: RunConfig, device: Device) -> None:
    """Refuse a method that cannot work with this device, without opening it.

    Raises:
        ConfigurationError: the method does not suit the device; the message names an alternative.
    """
    method = config.method
    options = {name: value for name, value in method.options.items() if name not in ATTACH_OPTIONS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExpensiveGradientWarning)  # plan and report contain this warning
        choose_method(Session(device), method.name, method.estimator, method.surrogate, **options)


def attach_devices(config: RunConfig, task: Task, sessions: Mapping[str, Session]) -> nn.Module:
    """Return the task's model with the devices attached."""
    method = config.method
    options: dict[str, Any] = {
        "method": method.name,
        "estimator": method.estimator,
        "surrogate": method.surrogate,
        "encoding": method.encoding,
        "seed": config.seed,
        **method.options,
    }
    return attach(task.model(config.seed), sessions, **options)
