"""Benchmarks of gradients: what they cost, and how true they are."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Annotated, Any

import typer

from ... import benchmarks
from ...common.errors import ConfigurationError
from .. import options as o
from ..console import one_sentence_errors, out, print_json
from .common import (
    Devices,
    Impairments,
    Methods,
    Out,
    Samples,
    Seeds,
    Steps,
    grouped,
    make_table,
    numbers,
    parse_size,
    save,
    say_where,
    span,
    spread,
    words,
)

__all__ = ["efficiency", "fidelity", "overhead", "refresh"]


@one_sentence_errors
def efficiency(
    devices: Devices = "mrr,slm,matvec",
    methods: Methods = "auto,paper",
    seeds: Seeds = "0,1,2,3,4",
    impairments: Impairments = "lab",
    samples: Annotated[str, typer.Option("--samples", help="Perturbations a step, for 'paper'.")] = "1,10,100",
    target: Annotated[float, typer.Option(help="Test accuracy to reach.", min=0.0, max=1.0)] = 0.975,
    epochs: Annotated[int, typer.Option(help="The most to run; ten times as many for 'paper'.", min=1)] = 10,
    patience: Annotated[
        float, typer.Option(help="Give up at so many times what another method has needed.", min=1.0)
    ] = 100.0,
    task: Annotated[str, typer.Option("--task", help="What to train.")] = "digits-deep",
    sizes: Annotated[str, typer.Option("--sizes", help="Inputs x outputs of the device layer.")] = "256x128",
    jobs: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 1,
    output: Out = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Count the hardware operations that digits take to a test accuracy, method by method.

    'paper' gets each number of samples, its best step on the device, and ten times the epochs.

    A run ends early when it can not win any more, against other numbers of samples or by --patience.

    Example: astralora bench efficiency --devices mrr --methods auto --seeds 0
    """
    width, height = parse_size(sizes)
    with Steps("races") as steps:
        results = benchmarks.efficiency(
            words(devices),
            words(methods),
            numbers("--seeds", seeds),
            impairments=impairments,
            target=target,
            patience=patience,
            epochs=epochs,
            samples=numbers("--samples", samples, least=1),
            task=task,
            size=(width, height),
            jobs=jobs,
            listener=lambda _, total: steps.advance(total),
        )
    records = [result.record() for result in results]
    curves = [{**result.record(), "curve": result.curve} for result in results]
    folder = save("efficiency", output, records, benchmarks.efficiency_png(results), curves=curves)
    if json:
        print_json(records)
        return
    _efficiency_table(records)
    say_where(folder)


@one_sentence_errors
def fidelity(
    devices: Devices = "mrr,slm,matvec,monarch,mzi",
    methods: Methods = "auto,online,orthogonal,paper",
    sizes: Annotated[str, typer.Option("--sizes", help="Inputs and outputs, with commas between them.")] = "64",
    seeds: Seeds = "0,1,2",
    impairments: Impairments = "lab",
    samples: Samples = "1,10,100",
    batch: Annotated[int, typer.Option(help="Vectors of the problem.", min=1)] = 256,
    output: Out = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Compare both gradients with the exact ones, against what was spent on them.

    Example: astralora bench fidelity --devices mrr --methods auto,paper --seeds 0
    """
    with Steps("gradients") as steps:
        records = benchmarks.fidelity(
            words(devices),
            words(methods),
            numbers("--sizes", sizes, least=1),
            numbers("--seeds", seeds),
            impairments=impairments,
            samples=numbers("--samples", samples, least=1),
            batch=batch,
            listener=lambda _: steps.advance(None),
        )
    if not records:
        raise ConfigurationError("none of these methods suits any of these devices; see 'astralora devices'")
    folder = save("fidelity", output, records, benchmarks.fidelity_png(records))
    if json:
        print_json(records)
        return
    keys = ("device", "size", "data", "method", "samples")
    table = make_table(*keys, "programs", "vectors", "controls", "predicted", "inputs")
    for key, group in grouped(records, keys):
        predictions = [r["predicted_controls"] for r in group if r["predicted_controls"] is not None]
        table.add_row(
            *("" if part is None else str(part) for part in key),
            f"{fmean(r['programs'] for r in group):,.0f}",
            f"{fmean(r['vectors'] for r in group):,.0f}",
            spread([r["cosine_controls"] for r in group]),
            f"{fmean(predictions):.3f}" if predictions else "",
            spread([r["cosine_inputs"] for r in group]),
        )
    out.print(table)
    out.print("Cosines to the exact gradients, mean and range over the seeds.", style="dim")
    say_where(folder)


@one_sentence_errors
def overhead(
    devices: Devices = "slm",
    methods: Methods = "auto,exact,paper",
    sizes: Annotated[
        str, typer.Option("--sizes", help="Inputs and outputs, with commas between them.")
    ] = "128,256,512,1024",
    impairments: Impairments = "lab",
    batch: Annotated[int, typer.Option(help="Vectors a step.", min=1)] = 256,
    cycles: Annotated[int, typer.Option(help="Of eight steps each, or of the method's own period.", min=1)] = 4,
    samples: Annotated[int, typer.Option(help="Perturbations a step, for 'paper'.", min=1)] = 100,
    output: Out = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Time a training step of a simulated layer as a multiple of that of nn.Linear.

    Example: astralora bench overhead --methods auto,exact --sizes 128,256
    """
    with Steps("timings") as steps:
        records = benchmarks.overhead(
            words(devices),
            words(methods),
            numbers("--sizes", sizes, least=1),
            impairments=impairments,
            batch=batch,
            cycles=cycles,
            samples=samples,
            listener=lambda _: steps.advance(None),
        )
    folder = save("overhead", output, records, benchmarks.overhead_png(records))
    if json:
        print_json(records)
        return
    table = make_table("device", "impairments", "method", "size", "step / nn.Linear", "growth")
    earlier: dict[str, Any] = {}
    for record in records:
        name = f"{record['device']} {record['method']}"
        before = earlier.get(name)
        growth = "" if before is None else f"x {record['ratio_to_linear'] / before['ratio_to_linear']:.2f}"
        earlier[name] = record
        table.add_row(
            record["device"],
            record["impairments"],
            record["method"],
            str(record["size"]),
            f"{record['ratio_to_linear']:.1f}",
            growth,
        )
    out.print(table)
    say_where(folder)


@one_sentence_errors
def refresh(
    devices: Devices = "slm,mrr",
    seeds: Seeds = "0,1,2",
    surrogate: Annotated[str, typer.Option(help="One that can be refreshed by stability: psi or online_low_rank.")] = (
        "psi"
    ),
    impairments: Impairments = "lab",
    epochs: Annotated[int, typer.Option(help="Passes over the digits.", min=1)] = 10,
    sizes: Annotated[str, typer.Option("--sizes", help="Inputs x outputs of the device layer.")] = "256x128",
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Count the vectors that keep a low-rank surrogate true to its device, moved at every step and by stability.

    Gradients of the controls are measured in both, so that what differs is the surrogate alone.

    Example: astralora bench refresh --devices slm --seeds 0
    """
    with Steps("runs") as progress:
        records = benchmarks.refresh(
            words(devices),
            numbers("--seeds", seeds),
            surrogate=surrogate,
            impairments=impairments,
            epochs=epochs,
            size=parse_size(sizes),
            listener=lambda _, total: progress.advance(total),
        )
    if json:
        print_json(records)
        return
    table = make_table("device", "refresh", "test accuracy", "vectors", "health", "refits, splits, rebuilds", "rank")
    for (device, how), group in grouped(records, ("device", "refresh")):
        kinds = () if how is None else ("refits", "splits", "rebuilds")
        table.add_row(
            device,
            how or "every step",
            spread([record["test_accuracy"] for record in group]),
            span([record["vectors"] for record in group]),
            spread([record["health"] for record in group]),
            ", ".join(span([record[kind] for record in group]) for kind in kinds),
            "" if how is None else span([record["rank"] for record in group]),
        )
    out.print(table)
    out.print("Vectors spent on the surrogate after its start; mean and range over the seeds.", style="dim")


def _efficiency_table(records: Sequence[dict[str, Any]]) -> None:
    keys = ("device", "method", "samples")
    table = make_table(*keys, "reached", "epochs", "programs", "vectors", "best accuracy")
    for key, group in grouped(records, keys):
        reached = [r for r in group if r["reached"]]
        table.add_row(
            *("" if part is None else str(part) for part in key),
            f"{len(reached)} of {len(group)}" + (" *" if any(r["outdone"] for r in group) else ""),
            *(span([r[what] for r in reached]) for what in ("epochs", "programs", "vectors")),
            " to ".join(f"{100 * pick(r['best_accuracy'] for r in group):.1f}" for pick in (min, max)) + " %",
        )
    out.print(table)
    out.print("Least to most over the seeds that reached the target; evaluations are not counted.", style="dim")
    if any(r["outdone"] for r in records):
        out.print("* some were given up, having spent far more than is needed otherwise; see --help.", style="dim")
