"""Define the options of the commands for adapters, and make their configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from .. import options as o
from ..settings import ConfigOptions

if TYPE_CHECKING:
    from ...adapters.run_config import AdapterRun

__all__ = ["AdapterFile", "AdapterOptions", "Groups", "TrainOptions"]

_MODEL, _DATA, _SCORES = "Model", "Data", o.METHOD

_FILE_ENDINGS = (".jsonl", ".json", ".csv", ".txt")

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Transformer: {models}, a folder, or a name on the hub.",
        rich_help_panel=_MODEL,
    ),
]
Objective = Annotated[
    str | None,
    typer.Option("--objective", metavar="NAME", help="What to learn: {objectives}.", rich_help_panel=_MODEL),
]
AdapterFile = Annotated[
    Path | None,
    typer.Option(
        "--adapters",
        metavar="FILE",
        help="TOML file that enables and configures adapters. (default: all)",
        rich_help_panel=_MODEL,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="NAME",
        help="File (JSONL, CSV or text) or public data set: {collections}; or a part, as in glue/sst2.",
        rich_help_panel=_DATA,
    ),
]
TestData = Annotated[
    Path | None,
    typer.Option(
        "--test-data",
        metavar="FILE",
        help="File to test on. (default: a tenth of the data)",
        rich_help_panel=_DATA,
    ),
]
TextKey = Annotated[
    str | None, typer.Option("--text", metavar="NAME", help="Name of the column with the text.", rich_help_panel=_DATA)
]
PairKey = Annotated[
    str | None,
    typer.Option("--pair", metavar="NAME", help="Name of the column with the second text.", rich_help_panel=_DATA),
]
LabelKey = Annotated[
    str | None,
    typer.Option("--label", metavar="NAME", help="Name of the column with the label.", rich_help_panel=_DATA),
]
Length = Annotated[
    int | None, typer.Option("--length", metavar="N", help="Largest number of tokens in a text.", rich_help_panel=_DATA)
]
Proxy = Annotated[
    str | None,
    typer.Option("--proxy", metavar="NAME", help="How adapters are scored: {proxies}.", rich_help_panel=_SCORES),
]
Batches = Annotated[
    int | None,
    typer.Option("--batches", metavar="N", help="Number of batches for each scoring.", rich_help_panel=_SCORES),
]
Perturb = Annotated[
    float | None,
    typer.Option(
        "--perturb", metavar="X", help="Standard deviation of noise on every B during scoring.", rich_help_panel=_SCORES
    ),
]
ReallocN = Annotated[
    float | None,
    typer.Option(
        "--realloc-n",
        metavar="X",
        help="Time between two choices of adapters, as a share of an epoch.",
        rich_help_panel=_SCORES,
    ),
]
Groups = Annotated[
    str | None,
    typer.Option(
        "--groups",
        metavar="NAME",
        help="Ranking of LoRA and shortcuts; off disables shortcuts: {groups}.",
        rich_help_panel=_SCORES,
    ),
]
Dynamic = Annotated[
    bool,
    typer.Option(
        "--dynamic", help="Train a share of the adapters at a time, chosen by scores.", rich_help_panel=_SCORES
    ),
]


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(ConfigOptions):
    """Hold the options of ``score`` that set keys of an `AdapterRun`.

    Attributes:
        config: TOML file, which the other options override.
        adapters: TOML file that enables and configures adapters.
        data: file or public data set.
    """

    keys: ClassVar[Mapping[str, str]] = {
        "model_name": "model.name",
        "objective": "objective",
        "text": "data.text",
        "pair": "data.pair",
        "label": "data.label",
        "length": "data.length",
        "batch_size": "training.batch_size",
        "lr": "training.learning_rate",
        "seed": "seed",
        "proxy": "scoring.proxy",
        "batches": "scoring.batches",
        "perturb": "scoring.perturb",
    }
    open_keys: ClassVar[frozenset[str]] = frozenset({"adapters"})

    config: o.Config = None
    model_name: Model = None
    objective: Objective = None
    adapters: AdapterFile = None
    data: Data = None
    text: TextKey = None
    pair: PairKey = None
    label: LabelKey = None
    length: Length = None
    proxy: Proxy = None
    batches: Batches = None
    perturb: Perturb = None
    batch_size: o.BatchSize[int | None] = None
    lr: o.LearningRate = None
    seed: o.Seed[int | None] = None

    @classmethod
    def model(cls) -> type[AdapterRun]:
        """Return the class of the configuration."""
        from ...adapters.run_config import AdapterRun

        return AdapterRun

    def given(self) -> dict[str, Any]:
        """Return the options that were given, without ``--set``, by dotted key."""
        given = super().given()
        if self.data is not None:
            # A name on the hub has no ending, and a file may be missing.
            is_file = Path(self.data).exists() or Path(self.data).suffix.lower() in _FILE_ENDINGS
            given["data.train" if is_file else "data.name"] = self.data
        return given

    def load(self) -> AdapterRun:
        """Make the configuration: defaults, overridden by the file, overridden by the command line."""
        from ...adapters.config import AdapterConfig

        run = self.model().load(self.config, self.overrides())
        if self.adapters is None:
            return run
        return run.model_copy(update={"adapters": AdapterConfig.load(self.adapters)})


@dataclass(frozen=True, kw_only=True)
class TrainOptions(AdapterOptions):
    """Hold the options of ``train`` that set keys of an `AdapterRun`.

    Attributes:
        dynamic: train a share of the adapters at a time; the other ``dynamic`` keys come from the file.
    """

    keys: ClassVar[Mapping[str, str]] = {
        **AdapterOptions.keys,
        "test_data": "data.test",
        "epochs": "training.epochs",
        "steps": "training.steps",
        "turn_on": "dynamic.turn_on",
        "realloc_n": "dynamic.realloc_n",
        "groups": "dynamic.groups",
        "warmup_steps": "dynamic.warmup_steps",
    }

    test_data: TestData = None
    epochs: o.Epochs[float | None] = None
    steps: o.Steps[int | None] = None
    dynamic: Dynamic = False
    turn_on: o.TurnOn[float | None] = None
    realloc_n: ReallocN = None
    groups: Groups = None
    warmup_steps: o.WarmupSteps[int | None] = None

    def overrides(self) -> dict[str, Any]:
        """Return all options that were given as nested tables."""
        return {**({"dynamic": {}} if self.dynamic else {}), **super().overrides()}
