"""Options that the commands for adapters share, and the run that they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import nested_overrides

if TYPE_CHECKING:
    from ...adapters.settings import AdapterRun

RUN, DATA, SCORES = "Run", "Data", "Scores"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="tiny-opt, tiny-roberta, tiny-gemma, a folder, or a name on the hub. (default: tiny-opt)",
        rich_help_panel=RUN,
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(help="causal, masked or classification. (default: by the data)", rich_help_panel=RUN),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A file (JSONL, CSV or text), or a data set: glue/sst2, super_glue/boolq, alpaca, wikitext ...",
        rich_help_panel=DATA,
    ),
]
TestData = Annotated[
    Path | None,
    typer.Option("--test-data", help="File to test on. (default: a tenth is held out)", rich_help_panel=DATA),
]
TextKey = Annotated[str | None, typer.Option("--text", help="Column of the text.", rich_help_panel=DATA)]
PairKey = Annotated[str | None, typer.Option("--pair", help="Column of the second text.", rich_help_panel=DATA)]
LabelKey = Annotated[str | None, typer.Option("--label", help="Column of the label.", rich_help_panel=DATA)]
Length = Annotated[int | None, typer.Option(help="Tokens of a text, at most. (default: 64)", rich_help_panel=DATA)]
AdapterFile = Annotated[
    Path | None,
    typer.Option("--adapters", help="TOML file of which adapters there are; all unless given.", dir_okay=False),
]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data. (default: 1)", rich_help_panel=RUN)]
Steps = Annotated[int | None, typer.Option(help="The most steps to make.", rich_help_panel=RUN)]
BatchSize = Annotated[int | None, typer.Option(help="Texts a step. (default: 8)", rich_help_panel=RUN)]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Of AdamW, at the start. (default: 0.001)", rich_help_panel=RUN)
]
Seed = Annotated[int | None, typer.Option(help="Of everything random. (default: 0)", rich_help_panel=RUN)]
Proxy = Annotated[
    str | None,
    typer.Option(help="constant, grad_norm, snip, synflow or alpha_test. (default: grad_norm)", rich_help_panel=SCORES),
]
Batches = Annotated[int | None, typer.Option(help="That adapters are scored on. (default: 32)", rich_help_panel=SCORES)]
Perturb = Annotated[
    float | None, typer.Option(help="Noise on every B while scoring. (default: none)", rich_help_panel=SCORES)
]
TurnOn = Annotated[
    float | None, typer.Option(help="Share of the adapters that are on. (default: 0.25)", rich_help_panel=SCORES)
]
Groups = Annotated[
    str | None,
    typer.Option(
        help="Rank LoRA and shortcuts combined or separated, or leave shortcuts off. (default: combined)",
        rich_help_panel=SCORES,
    ),
]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="A TOML file; options given here override it.", dir_okay=False)
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any key of the configuration, such as model.options.hidden_size=64.")
]

_KEYS = {
    "model": "model.name",
    "objective": "objective",
    "test_data": "data.test",
    "text": "data.text",
    "pair": "data.pair",
    "label": "data.label",
    "length": "data.length",
    "epochs": "training.epochs",
    "steps": "training.steps",
    "batch_size": "training.batch_size",
    "lr": "training.learning_rate",
    "seed": "seed",
    "proxy": "scoring.proxy",
    "batches": "scoring.batches",
    "perturb": "scoring.perturb",
    "turn_on": "dynamic.turn_on",
    "realloc_n": "dynamic.realloc_n",
    "groups": "dynamic.groups",
    "warmup": "dynamic.warmup_steps",
}


def given_options(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a command's parameters that belong to the configuration and were given, by dotted key."""
    given = {
        _KEYS[name]: str(value) if isinstance(value, Path) else value
        for name, value in parameters.items()
        if name in _KEYS and value is not None
    }
    data = parameters.get("data")
    if data is not None:
        # A name on the hub has no ending, and a file may be missing.
        is_file = Path(data).exists() or Path(data).suffix.lower() in (".jsonl", ".json", ".csv", ".txt")
        given["data.train" if is_file else "data.name"] = data
    return given


def adapter_run(
    config: Path | None,
    settings: list[str] | None,
    given: dict[str, Any],
    adapter_file: Path | None,
    *,
    dynamic: bool = False,
) -> AdapterRun:
    """Defaults, overridden by the file, overridden by what was given on the command line.

    Args:
        config: TOML file.
        settings: of ``--set``, as KEY=VALUE.
        given: values by dotted key; see `given_options`.
        adapter_file: TOML file of which adapters there are.
        dynamic: let them take turns, as the file says where it says anything.
    """
    from ...adapters.config import AdapterConfig
    from ...adapters.settings import AdapterRun

    overrides = nested_overrides(given, settings)
    if dynamic:
        overrides.setdefault("dynamic", {})
    run = AdapterRun.load(config, overrides)
    return run if adapter_file is None else run.model_copy(update={"adapters": AdapterConfig.load(adapter_file)})
