"""Make the device of ``check``, ``calibrate`` and ``emulate`` from their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from ..devices import Budget, Device, offer_device
from ..devices.validation import Seed
from . import options as o
from .settings import ConfigOptions, validated

__all__ = ["ChipConfig", "ChipOptions", "ChipSection", "MeasuredChipConfig", "MeasuredChipOptions", "Section"]


class Section(BaseModel):
    """Hold a part of a configuration, which has no other keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ChipSection(Section):
    """Describe a device, with the keys of `astralora.training.DeviceConfig`.

    Attributes:
        name: registered name, bench file, or factory in a Python file.
        impairments: preset for a simulated device.
        seed: seed of a simulated chip; the command's seed unless given.
        options: other options for the device's factory.
    """

    name: str = Field(min_length=1)
    impairments: str = "lab"
    seed: Seed | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class ChipConfig(Section):
    """Configure a command that uses one device.

    Attributes:
        device: the device.
        in_features: number of inputs, if the device accepts it.
        out_features: number of outputs, if the device accepts it.
        seed: seed of everything random.
    """

    device: ChipSection
    in_features: PositiveInt = 16
    out_features: PositiveInt = 16
    seed: Seed = 0

    @property
    def make(self) -> Callable[[], Device]:
        """Return a function that makes the closed device.

        Size, impairments and seed are passed to factories that accept them, unless the device's options set them.
        """
        seed = self.seed if self.device.seed is None else self.device.seed
        offered = {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "impairments": self.device.impairments,
            "seed": seed,
        }
        options = self.device.options
        offered = {name: value for name, value in offered.items() if name not in options}
        return partial(offer_device, self.device.name, offered, **options)


class MeasuredChipConfig(ChipConfig):
    """Configure a command that measures one device.

    Attributes:
        budget: limits on the operations of the command.
    """

    budget: Budget = Budget()


@dataclass(frozen=True, kw_only=True)
class ChipOptions(ConfigOptions):
    """Hold the options that set keys of a `ChipConfig`."""

    keys: ClassVar[Mapping[str, str]] = {
        "device": "device.name",
        "impairments": "device.impairments",
        "in_features": "in_features",
        "out_features": "out_features",
        "seed": "seed",
    }

    device: o.Device[str]
    impairments: o.Impairments[str | None] = None
    in_features: o.InFeatures = None
    out_features: o.OutFeatures = None
    seed: o.Seed[int | None] = None

    @classmethod
    def model(cls) -> type[ChipConfig]:
        """Return the class of the configuration."""
        return ChipConfig


@dataclass(frozen=True, kw_only=True)
class MeasuredChipOptions(ChipOptions):
    """Hold the options that set keys of a `MeasuredChipConfig`."""

    keys: ClassVar[Mapping[str, str]] = {
        **ChipOptions.keys,
        "budget_programs": "budget.programs",
        "budget_vectors": "budget.vectors",
    }

    budget_programs: o.BudgetPrograms[int | None] = None
    budget_vectors: o.BudgetVectors[int | None] = None

    @classmethod
    def model(cls) -> type[MeasuredChipConfig]:
        """Return the class of the configuration."""
        return MeasuredChipConfig

    def load(self) -> MeasuredChipConfig:
        """Make the configuration: defaults, overridden by the options."""
        return validated(self.model(), self.overrides())
