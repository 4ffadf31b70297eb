"""Everything that makes a run, as one model: defaults, TOML and command line meet here."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from ..budgets.sample_allocator import Currency, Ranking
from ..common.errors import ConfigurationError
from ..devices import Bench, Budget, Retry

__all__ = ["AllocateConfig", "DeviceConfig", "MethodConfig", "RunConfig"]

Option = bool | int | float | str | list[float]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeviceConfig(_Section):
    """Which device stands in for the layer.

    Attributes:
        name: a registered device.
        impairments: preset, for devices that are simulated.
        seed: which simulated chip; the run's seed unless given.
        calibration: file of the chip's calibration, which then stands in front of it.
        options: anything else that the device's factory takes.
    """

    name: str = "mrr"
    impairments: str = "lab"
    seed: NonNegativeInt | None = None
    calibration: str | None = None
    options: dict[str, Option] = {}


class MethodConfig(_Section):
    """How gradients are found.

    Attributes:
        name: a method, which names estimator and surrogate.
        estimator: takes the place of the method's.
        surrogate: takes the place of the method's.
        encoding: of activations into the input range.
        options: for estimator and surrogate, such as ``samples``, ``rank``, ``step``.
    """

    name: str = "auto"
    estimator: str | None = None
    surrogate: str | None = None
    encoding: Literal["auto", "scale", "differential"] = "auto"
    options: dict[str, Option] = {}


class AllocateConfig(_Section):
    """How samples move between device layers; see `astralora.budgets.sample_allocator.SampleAllocator`.

    Attributes:
        ranking: what layers share by.
        period: steps of one budget.
        turn_on: share of the layers that get samples at all.
        budget: of one period, in ``currency``; that of the samples as configured unless given.
        currency: what the budget is in.
    """

    ranking: Ranking
    period: PositiveInt = 10
    turn_on: float = Field(default=1.0, gt=0, le=1)
    budget: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    currency: Currency = "hardware_seconds"


class RunConfig(_Section):
    """A complete training run.

    Attributes:
        task: what to train.
        seed: of weights, data order, estimator and, unless the device has its own, chip.
        epochs: passes over the training data.
        batch_size: vectors per step.
        learning_rate: of Adam, for all parameters; falls along a cosine.
        final_learning_rate: where it ends.
        in_features: width of the device layer's input.
        out_features: width of its output.
        baseline: train the same model without a device beside it.
        device: which device.
        method: how gradients are found.
        allocate: move samples between the device layers.
        budget: the most that the device may be asked.
        retry: how often, and how soon, to try again after a fault of the device's link.
    """

    task: str = "digits"
    seed: NonNegativeInt = 0
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 50
    learning_rate: float = Field(default=0.01, gt=0, allow_inf_nan=False)
    final_learning_rate: float = Field(default=1e-6, ge=0, allow_inf_nan=False)
    in_features: PositiveInt = 256
    out_features: PositiveInt = 128
    baseline: bool = True
    device: DeviceConfig = DeviceConfig()
    method: MethodConfig = MethodConfig()
    allocate: AllocateConfig | None = None
    budget: Budget = Budget()
    retry: Retry = Retry()

    @classmethod
    def load(cls, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Self:
        """Defaults, overridden by a TOML file, overridden by nested ``overrides``.

        Raises:
            ConfigurationError: no such file, no TOML, or a key or value that does not belong there.
        """
        values: dict[str, Any] = {}
        if path is not None:
            try:
                values = tomllib.loads(path.read_text(encoding="utf-8"))
            except OSError as error:
                raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"{path} is not TOML: {error}") from None
        try:
            values = _merged(values, overrides or {})
            return cls.model_validate(_with_bench(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            known = ""
            if first["type"] == "extra_forbidden":
                section = first["loc"][0] if len(first["loc"]) > 1 else None
                known = f"; known are {', '.join(_keys(cls, section))}"
            source = f" in {path}" if path else ""
            raise ConfigurationError(f"{where}{source}: {first['msg']}{known}") from None

    def to_toml(self) -> str:
        """The complete configuration, from which the run can be repeated."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def _with_bench(values: dict[str, Any]) -> dict[str, Any]:
    """The same with a bench file's device and options in the place of its name: a run has to be repeatable."""
    device = values.get("device")
    name = device.get("name") if isinstance(device, Mapping) else None
    if not isinstance(device, Mapping) or not isinstance(name, str) or not name.endswith(".toml"):
        return values
    bench = Bench.load(name)
    options = device.get("options", {})
    return {**values, "device": {**device, "name": bench.device, "options": {**bench.options, **options}}}


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _keys(model: type[BaseModel], section: object) -> list[str]:
    if section is not None:
        inner = model.model_fields[str(section)].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
