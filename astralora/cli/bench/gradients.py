"""Provide the benchmarks of gradients: their cost and their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Annotated

import typer

from ... import benchmarks
from ...common.errors import ConfigurationError
from .. import options as o
from ..command import command
from ..console import out, print_json
from ..output import check_folder
from ..progress import Count
from .common import (
    Record,
    format_range,
    group_records,
    make_table,
    mean_and_range,
    parse_numbers,
    parse_size,
    parse_sizes,
    print_folder,
    save,
    split_words,
)

__all__ = ["efficiency", "fidelity", "overhead", "refresh"]


@command
def efficiency(
    devices: o.Devices = "mrr,slm,matvec",
    methods: o.Methods = "auto,paper",
    seeds: o.Seeds = "0,1,2,3,4",
    impairments: o.Impairments[str] = "lab",
    samples: o.SamplesList = "1,10,100",
    target: Annotated[float, typer.Option(metavar="X", help="Test accuracy to reach.", min=0.0, max=1.0)] = 0.975,
    epochs: o.Epochs[int] = 10,
    patience: Annotated[
        float,
        typer.Option(metavar="X", help="Stop a run at this multiple of the operations of another method.", min=1.0),
    ] = 100.0,
    task: o.Task[str] = "digits-deep",
    size: o.Size = "256x128",
    jobs: Annotated[int, typer.Option(metavar="N", help="Number of parallel runs.", min=1)] = 1,
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Count the hardware operations that each method needs to reach a test accuracy on digits.

    The method 'paper' runs once for each number of samples, with the best step for the device and ten times the epochs.

    A run ends early when the same method needed fewer operations with another number of samples, or by --patience.

    Example: astralora bench efficiency --device mrr --method auto --seeds 0
    """
    check_folder(output)
    with Count("runs") as count:
        results = benchmarks.efficiency(
            split_words(devices),
            split_words(methods),
            parse_numbers("--seeds", seeds),
            impairments=impairments,
            target=target,
            patience=patience,
            epochs=epochs,
            samples=parse_numbers("--samples", samples, least=1),
            task=task,
            size=parse_size(size),
            jobs=jobs,
            listener=count.advance,
        )
    records = [result.record() for result in results]
    curves = [{**result.record(), "curve": result.curve} for result in results]
    folder = save("efficiency", output, records, benchmarks.efficiency_png(results), curves=curves)
    if json:
        print_json(records)
    else:
        _show_efficiency(records)
        print_folder(folder)


@command
def fidelity(
    devices: o.Devices = "mrr,slm,matvec,monarch,mzi",
    methods: o.Methods = "auto,online,orthogonal,paper",
    sizes: o.Size = "64",
    seeds: o.Seeds = "0,1,2",
    impairments: o.Impairments[str] = "lab",
    samples: o.SamplesList = "1,10,100",
    batch_size: o.BatchSize[int] = 256,
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Compare the gradients of controls and inputs with the exact ones, and show their cost.

    Example: astralora bench fidelity --device mrr --method auto,paper --seeds 0
    """
    check_folder(output)
    with Count("gradients") as count:
        records = benchmarks.fidelity(
            split_words(devices),
            split_words(methods),
            parse_sizes(sizes),
            parse_numbers("--seeds", seeds),
            impairments=impairments,
            samples=parse_numbers("--samples", samples, least=1),
            batch=batch_size,
            listener=count.advance,
        )
    if not records:
        raise ConfigurationError("none of these methods suits any of these devices; see 'astralora devices'")
    folder = save("fidelity", output, records, benchmarks.fidelity_png(records))
    if json:
        print_json(records)
    else:
        _show_fidelity(records)
        print_folder(folder)


@command
def overhead(
    devices: o.Devices = "slm",
    methods: o.Methods = "auto,exact,paper",
    sizes: o.Size = "128,256,512,1024",
    impairments: o.Impairments[str] = "lab",
    batch_size: o.BatchSize[int] = 256,
    cycles: Annotated[
        int, typer.Option(metavar="N", help="Cycles of eight steps each, or of the method's own period.", min=1)
    ] = 4,
    samples: o.Samples[int] = 100,
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Time a training step of a simulated layer, as a multiple of a step of nn.Linear.

    Example: astralora bench overhead --method auto,exact --size 128,256
    """
    check_folder(output)
    with Count("timings") as count:
        records = benchmarks.overhead(
            split_words(devices),
            split_words(methods),
            parse_sizes(sizes),
            impairments=impairments,
            batch=batch_size,
            cycles=cycles,
            samples=samples,
            listener=count.advance,
        )
    folder = save("overhead", output, records, benchmarks.overhead_png(records))
    if json:
        print_json(records)
    else:
        _show_overhead(records)
        print_folder(folder)


@command
def refresh(
    devices: o.Devices = "slm,mrr",
    seeds: o.Seeds = "0,1,2",
    surrogate: Annotated[
        str,
        typer.Option(metavar="NAME", help="Surrogate that can be refreshed by stability: psi or online_low_rank."),
    ] = "psi",
    impairments: o.Impairments[str] = "lab",
    epochs: o.Epochs[int] = 10,
    size: o.Size = "256x128",
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Count the vectors that keep a low-rank surrogate accurate, with updates at every step or by stability.

    Control gradients are measured in both cases, so that only the surrogate differs.

    Example: astralora bench refresh --device slm --seeds 0
    """
    check_folder(output)
    with Count("runs") as count:
        records = benchmarks.refresh(
            split_words(devices),
            parse_numbers("--seeds", seeds),
            surrogate=surrogate,
            impairments=impairments,
            epochs=epochs,
            size=parse_size(size),
            listener=count.advance,
        )
    folder = save("refresh", output, records)
    if json:
        print_json(records)
    else:
        _show_refresh(records)
        print_folder(folder)


def _show_efficiency(records: Sequence[Record]) -> None:
    keys = ("device", "method", "samples")
    table = make_table(*keys, "reached", "epochs", "programs", "vectors", "best accuracy")
    for key, group in group_records(records, keys):
        reached = [r for r in group if r["reached"]]
        table.add_row(
            *("" if part is None else str(part) for part in key),
            f"{len(reached)} of {len(group)}" + (" *" if any(r["outdone"] for r in group) else ""),
            *(format_range([r[what] for r in reached]) for what in ("epochs", "programs", "vectors")),
            " to ".join(f"{100 * pick(r['best_accuracy'] for r in group):.1f}" for pick in (min, max)) + " %",
        )
    out.print(table)
    out.print("Range over the seeds that reached the target, without the cost of evaluations.", style="dim")
    if any(r["outdone"] for r in records):
        out.print("* some runs ended early, after far more than other runs needed; see --help.", style="dim")


def _show_fidelity(records: Sequence[Record]) -> None:
    keys = ("device", "size", "data", "method", "samples")
    table = make_table(*keys, "programs", "vectors", "controls", "predicted", "inputs")
    for key, group in group_records(records, keys):
        predictions = [r["predicted_controls"] for r in group if r["predicted_controls"] is not None]
        table.add_row(
            *("" if part is None else str(part) for part in key),
            f"{fmean(r['programs'] for r in group):,.0f}",
            f"{fmean(r['vectors'] for r in group):,.0f}",
            mean_and_range([r["cosine_controls"] for r in group]),
            f"{fmean(predictions):.3f}" if predictions else "",
            mean_and_range([r["cosine_inputs"] for r in group]),
        )
    out.print(table)
    out.print("Cosines to the exact gradients, mean and range over the seeds.", style="dim")


def _show_overhead(records: Sequence[Record]) -> None:
    table = make_table("device", "impairments", "method", "size", "step / nn.Linear", "growth")
    smaller: dict[tuple[str, str], float] = {}
    for record in records:
        key, ratio = (record["device"], record["method"]), record["ratio_to_linear"]
        growth = f"x {ratio / smaller[key]:.2f}" if key in smaller else ""
        smaller[key] = ratio
        table.add_row(
            record["device"], record["impairments"], record["method"], str(record["size"]), f"{ratio:.1f}", growth
        )
    out.print(table)


def _show_refresh(records: Sequence[Record]) -> None:
    table = make_table("device", "refresh", "test accuracy", "vectors", "health", "refits, splits, rebuilds", "rank")
    for (device, how), group in group_records(records, ("device", "refresh")):
        kinds = () if how is None else ("refits", "splits", "rebuilds")
        table.add_row(
            device,
            how or "every step",
            mean_and_range([record["test_accuracy"] for record in group]),
            format_range([record["vectors"] for record in group]),
            mean_and_range([record["health"] for record in group]),
            ", ".join(format_range([record[kind] for record in group]) for kind in kinds),
            "" if how is None else format_range([record["rank"] for record in group]),
        )
    out.print(table)
    out.print("Vectors spent on the surrogate after its start; mean and range over the seeds.", style="dim")
