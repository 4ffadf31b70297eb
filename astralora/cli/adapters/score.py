"""``astralora adapters score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ...common.errors import ConfigurationError
from .. import options as o
from ..console import one_sentence_errors, out, print_json
from . import options as a
from .notes import noted

__all__ = ["score"]


@one_sentence_errors
def score(
    data: a.Data = None,
    text: a.TextKey = None,
    pair: a.PairKey = None,
    label: a.LabelKey = None,
    length: a.Length = None,
    model: a.Model = None,
    objective: a.Objective = None,
    adapter_file: a.AdapterFile = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Score the adapters of a finished run, as it left them.", file_okay=False),
    ] = None,
    proxy: a.Proxy = None,
    batches: a.Batches = None,
    perturb: a.Perturb = None,
    warmup_steps: Annotated[
        int, typer.Option(help="Train all adapters for so many steps first.", min=0, rich_help_panel=a.SCORES)
    ] = 0,
    batch_size: a.BatchSize = None,
    lr: a.LearningRate = None,
    seed: a.Seed = None,
    config: a.Config = None,
    settings: a.Set = None,
    output: Annotated[Path, typer.Option("--out", "-o", help="The scores.", dir_okay=False)] = Path("scores.toml"),
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Score every adapter of a transformer on some batches of data.

    Example: astralora adapters score --data corpus.txt --proxy snip --warmup-steps 20 -o scores.toml
    """
    from ...adapters.folder import AdapterFolder
    from ...adapters.run import score_run

    given = a.given_options(locals())
    folder = None
    if run is None:
        configuration = a.adapter_run(config, settings, given, adapter_file)
    else:
        if config or settings or adapter_file or any(not key.startswith("scoring.") for key in given):
            raise ConfigurationError("--run scores what is in a run: no other options than those of scores")
        folder = AdapterFolder(run)
        configuration = folder.config()
        if given:
            scoring = configuration.scoring.model_dump() | o.nested_overrides(given, None)["scoring"]
            tables = configuration.model_dump(exclude_none=True) | {"scoring": scoring}
            configuration = type(configuration).load(None, {**tables, "adapters": configuration.adapters.to_tables()})
    with noted():
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
