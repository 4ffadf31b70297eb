"""``astralora adapters``: which low-rank adapters of a transformer deserve the budget?"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from devices.files import write_atomically

from ..errors import ConfigurationError
from ..reports import duration
from . import options as o
from .console import errors, one_sentence_errors, out, print_json

if TYPE_CHECKING:
    from ..adapters.settings import AdapterRun

# What these commands stand on is imported in them: transformers takes longer than all of astralora.

__all__ = ["adapters"]

adapters = typer.Typer(help="Train low-rank adapters of transformers where they matter.", no_args_is_help=True)

_RUN, _DATA, _SCORES = "Run", "Data", "Scores"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="tiny-opt, tiny-roberta, tiny-gemma, a folder, or a name on the hub. (default: tiny-opt)",
        rich_help_panel=_RUN,
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(help="causal, masked or classification. (default: by the data)", rich_help_panel=_RUN),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A file (JSONL, CSV or text), or a data set: glue/sst2, super_glue/boolq, alpaca, wikitext ...",
        rich_help_panel=_DATA,
    ),
]
TestData = Annotated[
    Path | None,
    typer.Option("--test-data", help="File to test on. (default: a tenth is held out)", rich_help_panel=_DATA),
]
TextKey = Annotated[str | None, typer.Option("--text", help="Column of the text.", rich_help_panel=_DATA)]
PairKey = Annotated[str | None, typer.Option("--pair", help="Column of the second text.", rich_help_panel=_DATA)]
LabelKey = Annotated[str | None, typer.Option("--label", help="Column of the label.", rich_help_panel=_DATA)]
Length = Annotated[int | None, typer.Option(help="Tokens of a text, at most. (default: 64)", rich_help_panel=_DATA)]
AdapterFile = Annotated[
    Path | None,
    typer.Option("--adapters", help="TOML file of which adapters there are; all unless given.", dir_okay=False),
]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data. (default: 1)", rich_help_panel=_RUN)]
Steps = Annotated[int | None, typer.Option(help="The most steps to make.", rich_help_panel=_RUN)]
BatchSize = Annotated[int | None, typer.Option(help="Texts a step. (default: 8)", rich_help_panel=_RUN)]
LearningRate = Annotated[
    float | None, typer.Option("--lr", help="Of AdamW, at the start. (default: 0.001)", rich_help_panel=_RUN)
]
Seed = Annotated[int | None, typer.Option(help="Of everything random. (default: 0)", rich_help_panel=_RUN)]
Proxy = Annotated[
    str | None,
    typer.Option(
        help="constant, grad_norm, snip, synflow or alpha_test. (default: grad_norm)", rich_help_panel=_SCORES
    ),
]
Batches = Annotated[
    int | None, typer.Option(help="That adapters are scored on. (default: 32)", rich_help_panel=_SCORES)
]
Perturb = Annotated[
    float | None, typer.Option(help="Noise on every B while scoring. (default: none)", rich_help_panel=_SCORES)
]
TurnOn = Annotated[
    float | None, typer.Option(help="Share of the adapters that are on. (default: 0.25)", rich_help_panel=_SCORES)
]
Groups = Annotated[
    str | None,
    typer.Option(
        help="Rank LoRA and shortcuts combined or separated, or leave shortcuts off. (default: combined)",
        rich_help_panel=_SCORES,
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


@adapters.callback()
def _root() -> None:
    pass


@adapters.command()
@one_sentence_errors
def train(
    data: Data = None,
    test_data: TestData = None,
    text: TextKey = None,
    pair: PairKey = None,
    label: LabelKey = None,
    length: Length = None,
    model: Model = None,
    objective: Objective = None,
    adapter_file: AdapterFile = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Let adapters take turns, by their scores.", rich_help_panel=_SCORES)
    ] = False,
    turn_on: TurnOn = None,
    realloc_n: Annotated[
        float | None,
        typer.Option(help="Share of an epoch from one choice to the next. (default: 0.1)", rich_help_panel=_SCORES),
    ] = None,
    groups: Groups = None,
    warmup: Annotated[
        int | None,
        typer.Option(help="Steps with all on, before the first choice. (default: 0)", rich_help_panel=_SCORES),
    ] = None,
    proxy: Proxy = None,
    batches: Batches = None,
    perturb: Perturb = None,
    config: Config = None,
    settings: Set = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder. (default: a new one in runs/)", file_okay=False)
    ] = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Train adapters of a transformer, all of them or a share that takes turns, and leave a run folder.

    Example: astralora adapters train --data corpus.txt --dynamic --turn-on 0.25
    """
    from ..adapters.folder import AdapterFolder
    from ..adapters.run import train_run

    given = _given(locals())
    if not dynamic and any(key.startswith("dynamic.") for key in given):
        raise ConfigurationError(
            "--turn-on, --realloc-n, --groups and --warmup are about adapters that take turns; add --dynamic"
        )
    run = _run(config, settings, given, adapter_file, dynamic=dynamic)
    folder = AdapterFolder(output or _new_folder(run))
    with _noted(), _Steps() as view:
        summary = train_run(run, folder, listener=view.show)
    if json:
        print_json(summary)
        return
    _print_summary(summary, folder.path)


@adapters.command("test")
@one_sentence_errors
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", file_okay=False)],
    data: Annotated[
        Path | None, typer.Option("--data", help="File to test on. (default: the run's own test set)", dir_okay=False)
    ] = None,
    json: o.Json = False,
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Test the adapters of a finished run.

    Example: astralora adapters test runs/adapters-tiny-opt --data other.txt
    """
    from ..adapters.folder import AdapterFolder
    from ..adapters.run import evaluate_run

    with _noted():
        found = evaluate_run(AdapterFolder(run), {"test": str(data)} if data is not None else None)
    if json:
        print_json(found)
        return
    for name, value in found.items():
        out.print(f"{name.replace('_', ' ')}  {value:.4f}", highlight=False)


@adapters.command()
@one_sentence_errors
def score(
    data: Data = None,
    text: TextKey = None,
    pair: PairKey = None,
    label: LabelKey = None,
    length: Length = None,
    model: Model = None,
    objective: Objective = None,
    adapter_file: AdapterFile = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Score the adapters of a finished run, as it left them.", file_okay=False),
    ] = None,
    proxy: Proxy = None,
    batches: Batches = None,
    perturb: Perturb = None,
    warmup_steps: Annotated[
        int, typer.Option(help="Train all adapters for so many steps first.", min=0, rich_help_panel=_SCORES)
    ] = 0,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    seed: Seed = None,
    config: Config = None,
    settings: Set = None,
    output: Annotated[Path, typer.Option("--out", "-o", help="The scores.", dir_okay=False)] = Path("scores.toml"),
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Score every adapter of a transformer on some batches of data.

    Example: astralora adapters score --data corpus.txt --proxy snip --warmup-steps 20 -o scores.toml
    """
    from ..adapters.folder import AdapterFolder
    from ..adapters.run import score_run

    given = _given(locals())
    folder = None
    if run is None:
        configuration = _run(config, settings, given, adapter_file)
    else:
        if config or settings or adapter_file or any(not key.startswith("scoring.") for key in given):
            raise ConfigurationError("--run scores what is in a run: no other options than those of scores")
        folder = AdapterFolder(run)
        configuration = folder.config()
        if given:
            scoring = configuration.scoring.model_dump() | o.nested_overrides(given, None)["scoring"]
            tables = configuration.model_dump(exclude_none=True) | {"scoring": scoring}
            configuration = type(configuration).load(None, {**tables, "adapters": configuration.adapters.to_tables()})
    with _noted():
        found = score_run(configuration, warmup_steps=warmup_steps, folder=folder)
    found.save(output)
    if json:
        print_json({"proxy": found.proxy, "batches": found.batches, "scores": dict(found.values)})
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("adapter")
    table.add_column(found.proxy, justify="right")
    for key, value in sorted(found.values.items(), key=lambda item: -item[1]):
        table.add_row(key, f"{value:.4g}")
    out.print(table)
    out.print(f"scores: {output}", soft_wrap=True)


@adapters.command()
@one_sentence_errors
def search(
    scores: Annotated[
        Path, typer.Argument(help="As 'astralora adapters score' wrote them, or a dynamic run's frequency.toml.")
    ],
    base: Annotated[
        Path | None, typer.Option("--adapters", help="TOML file whose defaults to keep.", dir_okay=False)
    ] = None,
    turn_on: Annotated[float, typer.Option(help="Share of the adapters that are on.", min=0.0, max=1.0)] = 0.25,
    rank: Annotated[int | None, typer.Option("--rank", "-r", help="Of those on. (default: the base's)", min=1)] = None,
    groups: Annotated[
        str, typer.Option(help="Rank LoRA and shortcuts combined or separated, or leave shortcuts off.")
    ] = "combined",
    mode: Annotated[
        str, typer.Option(help="topk: the best at one rank; proportional: ranks by scores, for as many numbers.")
    ] = "topk",
    seed: Annotated[int, typer.Option(help="Of the order of equal scores.", min=0)] = 0,
    output: Annotated[
        Path, typer.Option("--out", "-o", help="The adapters, for 'train --adapters'.", dir_okay=False)
    ] = Path("adapters.toml"),
    json: o.Json = False,
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Choose adapters by their scores, and write which are on and which are off, layer by layer.

    Example: astralora adapters search scores.toml --turn-on 0.25 --rank 8 -o adapters.toml
    """
    from ..adapters.config import AdapterConfig
    from ..adapters.scoring import Scores
    from ..adapters.search import search as run_search

    found = run_search(
        Scores.load(scores),
        None if base is None else AdapterConfig.load(base),
        turn_on=turn_on,
        rank=rank,
        groups=groups,  # type: ignore[arg-type]  # checked there
        mode=mode,  # type: ignore[arg-type]
        seed=seed,
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, found.to_toml())
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror or error}") from None
    layers = {key: table for key, table in found.to_tables().items() if key.startswith("model_layer_")}
    rows = {f"{layer}.{name}": row for layer, table in layers.items() for name, row in table.items()}
    ranks = {key: row["r"] for key, row in rows.items() if "r" in row}
    if json:
        print_json({"on": ranks, "off": len(rows) - len(ranks)})
        return
    for key, value in ranks.items():
        out.print(f"{key}  rank {value}", highlight=False)
    out.print(f"adapters: {output}", soft_wrap=True)


def _given(parameters: Mapping[str, Any]) -> dict[str, Any]:
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


def _run(
    config: Path | None,
    settings: list[str] | None,
    given: dict[str, Any],
    adapter_file: Path | None,
    *,
    dynamic: bool = False,
) -> AdapterRun:
    from ..adapters.config import AdapterConfig
    from ..adapters.settings import AdapterRun

    overrides = o.nested_overrides(given, settings)
    if dynamic:
        overrides.setdefault("dynamic", {})
    run = AdapterRun.load(config, overrides)
    return run if adapter_file is None else run.model_copy(update={"adapters": AdapterConfig.load(adapter_file)})


def _new_folder(run: AdapterRun) -> Path:
    model = Path(run.model.name).name
    kind = "uniform" if run.dynamic is None else "dynamic"
    name = f"adapters-{model}-{kind}-seed{run.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, again = Path("runs") / name, 1
    while folder.exists():
        again += 1
        folder = Path("runs") / f"{name}-{again}"
    return folder


@contextmanager
def _noted() -> Generator[None]:
    """Say what was warned of in a line each, and keep quiet what libraries chat about."""
    from ..adapters.scoring import TiedScoresWarning
    from ..extras import require

    require("transformers", "'astralora adapters'", extra="lowrank").utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TiedScoresWarning)
        yield
    for sentence in dict.fromkeys(str(warning.message) for warning in caught):
        errors.print("[yellow]note:[/]", Text(sentence), soft_wrap=True)


class _Steps:
    """Live progress on standard error, and a line for every epoch."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TextColumn("{task.fields[note]}"),
            console=errors,
            transient=True,
        )
        self._started = False

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *_: object) -> None:
        if self._started:
            self._progress.stop()

    def show(self, record: dict[str, Any]) -> None:
        """Show one record."""
        if not self._started:
            # Only now: a run that is refused before its start shows its one sentence and nothing else.
            self._started = True
            self._progress.start()
            self._bar = self._progress.add_task("", total=None, note="")
        match record["event"]:
            case "step":
                self._progress.update(
                    self._bar, description=f"step {record['step']}", note=f"loss {record['loss']:.3f}"
                )
            case "epoch":
                scores = "  ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in record.items() if k.startswith("test_"))
                line = f"epoch {record['epoch']:.2f}  {scores}"
                self._progress.console.print(line, highlight=False, soft_wrap=True)


def _print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = {
        "run": f"{summary['model']}, {summary['objective']}, {summary['method']}, seed {summary['seed']}",
        **{name.replace("_", " "): f"{summary[name]:.4f}" for name in summary if name.startswith("test_")},
        "adapters on": f"{summary['adapters_on']} of {summary['adapters']}",
        "trained": f"{summary['trained_parameters']:,} of {summary['parameters']:,} numbers",
        "steps": f"{summary['steps']:,}",
        "time here": duration(summary["wall_seconds"]),
        "run folder": str(folder),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    out.print(table)
