"""Define each option of the command line once: its name, type and help text.

Names in braces, such as ``{methods}``, are replaced by the names in a table when help is shown; see `choices`. An
option of a configuration is None unless it is given, and help shows the default of the configuration; see `settings`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

import typer

__all__ = [
    "CONFIGURATION",
    "DEVICE",
    "METHOD",
    "OUTPUT",
    "RUN",
    "Allocate",
    "Baseline",
    "BatchSize",
    "BudgetPrograms",
    "BudgetVectors",
    "Calibration",
    "Config",
    "Debug",
    "Device",
    "Devices",
    "DriftTasks",
    "Epochs",
    "Impairments",
    "InFeatures",
    "Json",
    "Layers",
    "LearningRate",
    "Method",
    "Methods",
    "OutFeatures",
    "OutFile",
    "OutFolder",
    "Rank",
    "Resume",
    "Rounds",
    "Samples",
    "SamplesList",
    "Seed",
    "Seeds",
    "Set",
    "Size",
    "Step",
    "Steps",
    "Task",
    "TrainingFolder",
    "TurnOn",
    "WarmupSteps",
    "Width",
]

Value = TypeVar("Value")
"""Type of an option's value: ``str`` where a command requires the option, ``str | None`` where a file may set it."""

CONFIGURATION, DEVICE, METHOD, RUN, OUTPUT = "Configuration", "Device", "Method", "Run", "Output"
"""Panels that group the options in help."""

Device = Annotated[
    Value,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Registered device (see 'astralora devices'), bench file such as bench.toml, or FILE.py:FACTORY.",
        rich_help_panel=DEVICE,
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAMES",
        help="Registered devices, bench files or FILE.py:FACTORY, with commas between them.",
        rich_help_panel=DEVICE,
    ),
]
Impairments = Annotated[
    Value,
    typer.Option(
        "--impairments",
        metavar="NAME",
        help="Impairments of a simulated device: {impairments}.",
        rich_help_panel=DEVICE,
    ),
]
InFeatures = Annotated[
    int | None,
    typer.Option(
        "--in-features",
        metavar="N",
        help="Number of inputs, for devices that can have any size.",
        rich_help_panel=DEVICE,
    ),
]
OutFeatures = Annotated[
    int | None,
    typer.Option(
        "--out-features",
        metavar="N",
        help="Number of outputs, for devices that can have any size.",
        rich_help_panel=DEVICE,
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Calibration of the chip, a file of 'astralora calibrate'.",
        rich_help_panel=DEVICE,
    ),
]
BudgetPrograms = Annotated[
    Value,
    typer.Option("--budget-programs", metavar="N", help="Largest number of programs to spend.", rich_help_panel=DEVICE),
]
BudgetVectors = Annotated[
    Value,
    typer.Option("--budget-vectors", metavar="N", help="Largest number of vectors to spend.", rich_help_panel=DEVICE),
]
Size = Annotated[
    str,
    typer.Option(
        "--size",
        metavar="SIZES",
        help="Inputs and outputs of the device: 256, or 256x128 if they differ. Commands that compare sizes accept "
        "several, with commas between them.",
        rich_help_panel=DEVICE,
    ),
]

Method = Annotated[
    str | None,
    typer.Option("--method", metavar="NAME", help="How gradients are computed: {methods}.", rich_help_panel=METHOD),
]
Methods = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAMES",
        help="With commas between them: methods ({methods}), estimators ({estimators}), surrogates ({surrogates}), or "
        "pairs such as orthogonal+online.",
        rich_help_panel=METHOD,
    ),
]
Samples = Annotated[
    Value,
    typer.Option(
        "--samples",
        metavar="N",
        help="Perturbations per step of zero-order estimators. (default: 100)",
        rich_help_panel=METHOD,
    ),
]
SamplesList = Annotated[
    str,
    typer.Option(
        "--samples",
        metavar="N,...",
        help="Perturbations per step of zero-order estimators, with commas between them.",
        rich_help_panel=METHOD,
    ),
]
Rank = Annotated[
    int | None,
    typer.Option("--rank", metavar="N", help="Rank of the 'psi' surrogate. (default: 10)", rich_help_panel=METHOD),
]
Step = Annotated[
    float | None,
    typer.Option(
        "--step",
        metavar="X",
        help="Size of a perturbation, in control units. (default: from the device's levels and range)",
        rich_help_panel=METHOD,
    ),
]
Allocate = Annotated[
    str | None,
    typer.Option(
        "--allocate",
        metavar="NAME",
        help="Move samples between device layers at the same budget, ranked by {rankings}. (default: off)",
        rich_help_panel=METHOD,
    ),
]

Task = Annotated[
    Value,
    typer.Option("--task", metavar="NAME", help="Task to train: {tasks}.", rich_help_panel=RUN),
]
DriftTasks = Annotated[
    str,
    typer.Option(
        "--task",
        metavar="NAMES",
        help="Tasks to train, with commas between them: {drift_tasks}.",
        rich_help_panel=RUN,
    ),
]
Epochs = Annotated[
    Value,
    typer.Option("--epochs", metavar="N", help="Passes over the data.", rich_help_panel=RUN),
]
Steps = Annotated[
    Value,
    typer.Option("--steps", metavar="N", help="Most training steps.", min=1, rich_help_panel=RUN),
]
BatchSize = Annotated[
    Value,
    typer.Option("--batch-size", metavar="N", help="Vectors (or texts) per step or query.", min=1, rich_help_panel=RUN),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--lr", metavar="X", help="Learning rate at the start.", rich_help_panel=RUN),
]
Seed = Annotated[
    Value,
    typer.Option(
        "--seed",
        metavar="N",
        help="Seed of everything random, a simulated chip included.",
        min=0,
        max=2**63 - 1,
        rich_help_panel=RUN,
    ),
]
Seeds = Annotated[
    str,
    typer.Option(
        "--seeds",
        metavar="N,...",
        help="Seeds of everything random, with commas between them: one run each.",
        rich_help_panel=RUN,
    ),
]
Baseline = Annotated[
    bool | None,
    typer.Option(
        "--baseline/--no-baseline",
        help="Train a digital baseline, too.",
        rich_help_panel=RUN,
    ),
]
TurnOn = Annotated[
    Value,
    typer.Option(
        "--turn-on", metavar="X", help="Share of the adapters that are on, from 0 to 1.", rich_help_panel=METHOD
    ),
]
WarmupSteps = Annotated[
    Value,
    typer.Option(
        "--warmup-steps",
        metavar="N",
        help="Steps with all adapters on before their first scores.",
        min=0,
        rich_help_panel=METHOD,
    ),
]
Width = Annotated[
    int,
    typer.Option("--width", metavar="N", help="Width of the model, a multiple of 16.", min=16, rich_help_panel=RUN),
]
Layers = Annotated[int, typer.Option("--layers", metavar="N", help="Layers of the model.", min=1, rich_help_panel=RUN)]
Rounds = Annotated[int, typer.Option("--rounds", metavar="N", help="Pairs of measurements.", min=10)]

Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="TOML file of the configuration; other options override it.",
        rich_help_panel=CONFIGURATION,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the configuration, such as seed=1; may be repeated. Keys: {keys}.",
        rich_help_panel=CONFIGURATION,
    ),
]
OutFile = Annotated[
    Value,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="File for the result; one that exists is replaced.",
        rich_help_panel=OUTPUT,
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FOLDER",
        help="Folder for the result; files that exist are replaced. (default: a new one in runs/)",
        rich_help_panel=OUTPUT,
    ),
]
TrainingFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FOLDER",
        help="Folder for the run, new or empty. (default: a new one in runs/)",
        rich_help_panel=OUTPUT,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume", metavar="FOLDER", help="Resume the interrupted run in this folder.", rich_help_panel=OUTPUT
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]
