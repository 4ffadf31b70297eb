"""The options that `train` and `plan` share, and how they become a configuration."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..common.errors import ConfigurationError
from ..training import RunConfig

__all__ = [
    "Allocate",
    "BatchSize",
    "BudgetPrograms",
    "BudgetVectors",
    "Calibration",
    "Config",
    "Debug",
    "DeviceName",
    "Epochs",
    "Impairments",
    "InFeatures",
    "Json",
    "LearningRate",
    "Method",
    "OutFeatures",
    "Rank",
    "Samples",
    "Seed",
    "Set",
    "Step",
    "TaskName",
    "given_options",
    "nested_overrides",
    "parse_settings",
    "run_config",
]

_DEVICE, _METHOD, _TRAINING = "Device", "Method", "Training"

TaskName = Annotated[
    str | None, typer.Option("--task", help="What to train. (default: digits)", rich_help_panel=_TRAINING)
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Registered device, or a bench file; see 'astralora devices'. (default: mrr)",
        rich_help_panel=_DEVICE,
    ),
]
Impairments = Annotated[
    str | None,
    typer.Option(help="Of a simulated device: ideal, lab or harsh. (default: lab)", rich_help_panel=_DEVICE),
]
InFeatures = Annotated[
    int | None, typer.Option(help="Inputs of the device layer. (default: 256)", rich_help_panel=_DEVICE)
]
OutFeatures = Annotated[
    int | None, typer.Option(help="Outputs of the device layer. (default: 128)", rich_help_panel=_DEVICE)
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        help="The chip's calibration, as 'astralora calibrate' wrote it.", rich_help_panel=_DEVICE, dir_okay=False
    ),
]
BudgetPrograms = Annotated[int | None, typer.Option(help="The most programs to spend.", rich_help_panel=_DEVICE)]
BudgetVectors = Annotated[int | None, typer.Option(help="The most vectors to spend.", rich_help_panel=_DEVICE)]
Method = Annotated[
    str | None,
    typer.Option(help="How gradients are found: auto, paper or exact. (default: auto)", rich_help_panel=_METHOD),
]
Samples = Annotated[
    int | None,
    typer.Option(help="Perturbations a step, of zero-order estimators. (default: 100)", rich_help_panel=_METHOD),
]
Rank = Annotated[int | None, typer.Option(help="Of the 'psi' surrogate. (default: 10)", rich_help_panel=_METHOD)]
Step = Annotated[
    float | None,
    typer.Option(
        help="Size of a perturbation, in control units. (default: from the device's levels and range)",
        rich_help_panel=_METHOD,
    ),
]
Allocate = Annotated[
    str | None,
    typer.Option(
        help="Move samples between device layers for the same budget, by neyman, grad_norm or snip.",
        rich_help_panel=_METHOD,
    ),
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the data. (default: 10)", rich_help_panel=_TRAINING)]
BatchSize = Annotated[int | None, typer.Option(help="Samples per step. (default: 50)", rich_help_panel=_TRAINING)]
LearningRate = Annotated[
    float | None,
    typer.Option("--lr", help="Adam's, at the start. (default: 0.01)", rich_help_panel=_TRAINING),
]
Seed = Annotated[
    int | None,
    typer.Option(help="Of weights, data order and chip. (default: 0)", rich_help_panel=_TRAINING),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="A TOML file; options given here override it.", dir_okay=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any key of the configuration, such as device.options.response=power."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


# Where each option that was given goes in the configuration, by the name of its parameter.
_KEYS = {
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


def given_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's parameters that belong to the configuration and were given, by dotted key."""
    return {
        _KEYS[name]: str(value) if isinstance(value, Path) else value
        for name, value in parameters.items()
        if name in _KEYS and value is not None
    }


def run_config(config: Path | None, settings: list[str] | None, given: dict[str, Any]) -> RunConfig:
    """Defaults, overridden by the file, overridden by what was given on the command line.

    Args:
        config: TOML file.
        settings: of ``--set``, as KEY=VALUE.
        given: values by dotted key; see `given_options`.
    """
    return RunConfig.load(config, nested_overrides(given, settings))


def nested_overrides(given: dict[str, Any], settings: list[str] | None) -> dict[str, Any]:
    """What was given on the command line, as nested tables.

    Args:
        given: values by dotted key.
        settings: of ``--set``, which override them.
    """
    overrides: dict[str, Any] = {}
    for key, value in (given | parse_settings(settings)).items():
        _put(overrides, key, value)
    return overrides


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """The values of ``--set KEY=VALUE`` by key, which may have dots."""
    values = {}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ConfigurationError(f"--set takes KEY=VALUE, not {setting!r}")
        values[key.strip()] = _parse(value.strip())
    return values


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigurationError(f"{key} cannot be set: {part} has a value of its own")
        tree = below
    tree[last] = value


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a word without quotes
