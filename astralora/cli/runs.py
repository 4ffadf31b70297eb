"""Make the configuration of a run from the options of ``train`` and ``plan``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..devices.device_files import absolute_name
from ..training import RunConfig
from . import options as o
from .settings import ConfigOptions, nest, parse_settings

__all__ = ["RunOptions", "run_config"]


@dataclass(frozen=True, kw_only=True)
class RunOptions(ConfigOptions):
    """Hold the options that set keys of a `RunConfig`.

    Attributes:
        config: TOML file, which the other options override.
    """

    keys: ClassVar[Mapping[str, str]] = {
        "task": "task",
        "device": "device.name",
        "impairments": "device.impairments",
        "calibration": "device.calibration",
        "in_features": "in_features",
        "out_features": "out_features",
        "budget_programs": "budget.programs",
        "budget_vectors": "budget.vectors",
        "method": "method.name",
        "samples": "method.options.samples",
        "rank": "method.options.rank",
        "step": "method.options.step",
        "allocate": "allocate.ranking",
        "epochs": "epochs",
        "batch_size": "batch_size",
        "lr": "learning_rate",
        "seed": "seed",
        "baseline": "baseline",
    }

    config: o.Config = None
    device: o.Device[str | None] = None
    impairments: o.Impairments[str | None] = None
    calibration: o.Calibration = None
    in_features: o.InFeatures = None
    out_features: o.OutFeatures = None
    budget_programs: o.BudgetPrograms[int | None] = None
    budget_vectors: o.BudgetVectors[int | None] = None
    method: o.Method = None
    samples: o.Samples[int | None] = None
    rank: o.Rank = None
    step: o.Step = None
    allocate: o.Allocate = None
    task: o.Task[str | None] = None
    epochs: o.Epochs[int | None] = None
    batch_size: o.BatchSize[int | None] = None
    lr: o.LearningRate = None
    seed: o.Seed[int | None] = None
    baseline: o.Baseline = None

    @classmethod
    def model(cls) -> type[RunConfig]:
        """Return the class of the configuration."""
        return RunConfig

    def load(self) -> RunConfig:
        """Make the configuration; see `run_config`."""
        return run_config(self.config, self.settings, self.given())


def run_config(config: Path | None, settings: list[str] | None, given: Mapping[str, Any]) -> RunConfig:
    """Make a configuration: defaults, overridden by the file, overridden by the command line.

    The path of a device in a Python file is made absolute, so that the run can be repeated in another folder.

    Args:
        config: TOML file.
        settings: values of ``--set``, as KEY=VALUE.
        given: values of the other options by dotted key.
    """
    run = RunConfig.load(config, nest({**given, **parse_settings(settings, RunConfig)}))
    name = absolute_name(run.device.name)
    return run.model_copy(update={"device": run.device.model_copy(update={"name": name})})
