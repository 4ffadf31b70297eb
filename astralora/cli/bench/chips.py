"""Provide the benchmarks of simulated chips: their time, their identification, their drift."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Annotated

import typer

from ... import benchmarks
from ...reports import duration
from .. import options as o
from ..command import command
from ..console import out, print_json
from ..output import check_folder
from ..progress import Count
from .common import (
    Record,
    group_records,
    make_table,
    mean_and_deviation,
    parse_numbers,
    parse_sizes,
    parse_square,
    print_folder,
    save,
    split_words,
)

__all__ = ["drift", "identification", "simulators"]


@command
def simulators(
    devices: o.Devices = "matvec,slm,mrr,mzi,mzi3,monarch,lowrank,identity,diffractive",
    sizes: o.Size = "64,256",
    impairments: o.Impairments[str] = "lab",
    batch_size: o.BatchSize[int] = 256,
    repeats: Annotated[int, typer.Option(metavar="N", help="Number of timed passes; the median is shown.", min=3)] = 30,
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Time a simulated device, forward and backward, as a multiple of nn.Linear.

    A pass queries a batch through all impairments and computes both gradients from the device's law. A pass with a
    program sets new controls first.

    Example: astralora bench simulators --device slm,mzi --size 64
    """
    check_folder(output)
    with Count("timings") as count:
        records = benchmarks.simulators(
            split_words(devices),
            parse_sizes(sizes),
            impairments=impairments,
            batch=batch_size,
            repeats=repeats,
            listener=count.advance,
        )
    folder = save("simulators", output, records)
    if json:
        print_json(records)
        return
    table = make_table("device", "size", "ms a pass", "x nn.Linear", "x nn.Linear(256, 256)", "the same with a program")
    for record in records:
        table.add_row(
            record["device"],
            str(record["size"]),
            f"{1e3 * record['seconds']:.2f}",
            f"{record['multiple']:.1f}",
            f"{record['multiple_of_256']:.1f}",
            f"{record['multiple_of_256_with_program']:.1f}",
        )
    out.print(table)
    print_folder(folder)


@command
def identification(
    devices: o.Devices = "mzi",
    sizes: o.Size = "64",
    seeds: o.Seeds = "0,1,2",
    budget_programs: o.BudgetPrograms[int] = 64,
    budget_vectors: o.BudgetVectors[int] = 4100,
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Calibrate flawed chips, and compare the fitted constants with the true ones.

    Meshes have phase errors of 0.2 rad and efficiency errors of 5 %. Other chips have errors of 0.1 rad and 2 %, and a
    crosstalk of 0.5 %. All have 8 bits in and out, and 2 % noise. Cosines compare the control gradient with the chip's
    true gradient; the table shows the smallest of 5 settings. The budget is for one calibration.

    Example: astralora bench identification --device mzi --size 64 --seeds 0
    """
    check_folder(output)
    with Count("calibrations") as count:
        records = benchmarks.identification(
            split_words(devices),
            parse_sizes(sizes, least=2),
            parse_numbers("--seeds", seeds),
            programs=budget_programs,
            vectors=budget_vectors,
            listener=count.advance,
        )
    folder = save("identification", output, records)
    if json:
        print_json(records)
    else:
        _show_identification(records)
        print_folder(folder)


@command
def drift(
    seeds: o.Seeds = "0,1,2",
    size: o.Size = "64",
    epochs: o.Epochs[int] = 10,
    tasks: o.DriftTasks = "digits,digits-normed",
    vectors: Annotated[
        int, typer.Option(metavar="N", help="Number of reference vectors for 'global' and 'output'.", min=2)
    ] = 16,
    columns: Annotated[
        int, typer.Option(metavar="N", help="Number of outputs that 'columns' uses as references.", min=1)
    ] = 4,
    output: o.OutFolder = None,
    json: o.Json = False,
) -> None:
    """Test chips of phase-change memory over a simulated day, with and without compensation of their drift.

    A classifier of digits is trained on chips that do not drift. Its controls are then programmed once into chips that
    drift. With one device layer ('digits'), a decay that all weights share does no harm. A model with batch
    normalisation after each of two layers ('digits-normed') is sensitive to it.

    Example: astralora bench drift --seeds 0,1,2
    """
    check_folder(output)
    with Count("times") as count:
        records = benchmarks.drift(
            parse_numbers("--seeds", seeds),
            tasks=split_words(tasks),
            size=parse_square(size, least=16),
            epochs=epochs,
            vectors=vectors,
            columns=columns,
            listener=count.advance,
        )
    folder = save("drift", output, records, benchmarks.drift_png(records))
    if json:
        print_json(records)
        return
    _show_accuracy(records)
    _show_compensation(records)
    print_folder(folder)


def _show_identification(records: Sequence[Record]) -> None:
    table = make_table(
        "device",
        "size",
        "seed",
        "programs",
        "vectors",
        "s",
        "fits",
        "unexplained",
        "nominal",
        "twin",
        "beyond 3 errors",
    )
    for record in records:
        beyond = record["beyond"]
        table.add_row(
            record["device"],
            str(record["size"]),
            str(record["seed"]),
            f"{record['programs']:,}",
            f"{record['vectors']:,}",
            f"{record['seconds']:.0f}",
            "yes" if record["fits"] else "no",
            f"{100 * record['unexplained']:.2f} %",
            f"{record['before_least']:.4f}",
            f"{record['after_least']:.4f}",
            "-" if beyond is None else f"{beyond} of {record['constants']}",
        )
    out.print(table)


def _show_accuracy(records: Sequence[Record]) -> None:
    kinds = list(dict.fromkeys(record["compensation"] for record in records))
    table = make_table("task", "time", *kinds)
    for key, group in group_records(records, ("task", "seconds")):
        cells = [[r["test_accuracy"] for r in group if r["compensation"] == kind] for kind in kinds]
        table.add_row(key[0], duration(key[1]), *map(mean_and_deviation, cells))
    out.print(table)
    out.print("Test accuracy by time after the program: mean and deviation over the seeds, in percent.\n", style="dim")


def _show_compensation(records: Sequence[Record]) -> None:
    first, last = (pick(record["seconds"] for record in records) for pick in (min, max))
    table = make_table("task", "kind", "error", "programs", "vectors", "time", "columns")
    for key, group in group_records(records, ("task", "compensation")):
        errors = [fmean(r["output_error"] for r in group if r["seconds"] == end) for end in (first, last)]
        programs, vectors, seconds, columns = (
            max(r[what] for r in group) for what in ("programs", "vectors", "hardware_seconds", "columns")
        )
        table.add_row(
            *key,
            " to ".join(f"{100 * error:.1f}" for error in errors),
            f"{programs:,}",
            f"{vectors:,}",
            duration(seconds),
            f"{columns:,}",
        )
    out.print(table)
    out.print(
        "Error of the layers' outputs at the first and the last time, in percent; and the cost of references on the "
        "chips of one seed: programs, vectors, time on hardware, and outputs (columns).",
        style="dim",
    )
