"""Define the configuration of a run, shared by defaults, TOML files and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from ..budgets.sample_allocator import Currency, Ranking
from ..common.errors import ConfigurationError
from ..devices import Bench, Budget, Retry
from ..devices.files import file_name
from ..devices.parsing import read_toml
from ..devices.validation import Described, Place, Seed, first_problem

__all__ = ["AllocateConfig", "DeviceConfig", "MethodConfig", "RunConfig"]

_WIDEST = 2**20  # a layer of more inputs or outputs does not fit into memory

Option = bool | int | float | str | list[float]


class _Section(Described):
    """Refuse unknown keys and later changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DeviceConfig(_Section):
    """Choose the device of the device layers.

    Attributes:
        name: name of a registered device.
        impairments: preset of a simulated device.
        seed: seed of a simulated chip; the run's seed unless given.
        calibration: file of the chip's calibration, which is then applied.
        options: other options of the device's factory.
    """

    name: str = "mrr"
    impairments: str = "lab"
    seed: Seed | None = None
    calibration: str | None = None
    options: dict[str, Option] = Field(default_factory=dict)


class MethodConfig(_Section):
    """Choose how gradients are estimated.

    Attributes:
        name: name of a method, which determines estimator and surrogate.
        estimator: estimator, instead of the method's.
        surrogate: surrogate, instead of the method's.
        encoding: encoding of activations into the input range.
        options: options of estimator and surrogate, such as ``samples``, ``rank``, ``step``.
    """

    name: str = "auto"
    estimator: str | None = None
    surrogate: str | None = None
    encoding: Literal["auto", "scale", "differential"] = "auto"
    options: dict[str, Option] = Field(default_factory=dict)


class AllocateConfig(_Section):
    """Configure the movement of samples between device layers; see `SampleAllocator`.

    Attributes:
        ranking: quantity by which layers share the budget.
        period: number of steps for which one budget is spent.
        turn_on: share of the layers that get samples; the others get none.
        budget: budget of one period, in ``currency``; the cost of the configured samples unless given.
        currency: unit of the budget.
    """

    ranking: Ranking
    period: PositiveInt = 10
    turn_on: float = Field(default=1.0, gt=0, le=1)
    budget: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    currency: Currency = "hardware_seconds"


class RunConfig(_Section):
    """Describe a complete training run.

    Attributes:
        task: name of the task.
        seed: seed of weights, data order, estimator and, unless the device has its own, chip.
        epochs: number of passes over the training data.
        batch_size: vectors per step.
        learning_rate: initial learning rate of Adam, for all parameters; falls along a cosine.
        final_learning_rate: learning rate at the end.
        in_features: width of the device layer's input.
        out_features: width of the device layer's output.
        baseline: whether to train the same model without a device as well.
        device: choice of the device.
        method: choice of the gradient method.
        allocate: movement of samples between the device layers.
        budget: limits on the operations of each device.
        retry: number and timing of retries after a fault of the device's link.
    """

    task: str = "digits"
    seed: Seed = 0
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 50
    learning_rate: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    final_learning_rate: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    in_features: int = Field(default=256, ge=1, le=_WIDEST)
    out_features: int = Field(default=128, ge=1, le=_WIDEST)
    baseline: bool = True
    device: DeviceConfig = DeviceConfig()
    method: MethodConfig = MethodConfig()
    allocate: AllocateConfig | None = None
    budget: Budget = Budget()
    retry: Retry = Retry()

    @classmethod
    def load(cls, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Merge the defaults, a TOML file and nested ``overrides``; later ones take precedence.

        Raises:
            ConfigurationError: the file does not exist or is no TOML, or a key or value is invalid.
        """
        values = {} if path is None else read_toml(path, error=ConfigurationError)
        try:
            values = _merged(values, overrides or {})
            return cls.model_validate(_with_bench(values))
        except ValidationError as error:
            source = file_name(path) if path else ""
            raise ConfigurationError(first_problem(error, lambda place: _keys(cls, place), source=source)) from None

    def to_toml(self) -> str:
        """Return the complete configuration as TOML, from which the run can be repeated."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def _with_bench(values: dict[str, Any]) -> dict[str, Any]:
    """Replace the name of a bench file by its device and options, so that the run can be repeated."""
    device = values.get("device")
    name = device.get("name") if isinstance(device, Mapping) else None
    if not isinstance(device, Mapping) or not isinstance(name, str) or not name.endswith(".toml"):
        return values
    bench = Bench.load(name)
    options = device.get("options", {})
    return {**values, "device": {**device, "name": bench.device, "options": {**bench.options, **options}}}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; the second takes precedence."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _keys(model: type[BaseModel], place: Place) -> list[str]:
    """Return the valid keys of the section at this path, or of the model."""
    if len(place) > 1:
        inner = model.model_fields[str(place[0])].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
