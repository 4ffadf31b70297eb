"""Benchmarks of simulated chips: their time, their identification, their drift."""

from __future__ import annotations

from statistics import fmean
from typing import Annotated

import typer

from ... import benchmarks
from ...reports import duration
from .. import options as o
from ..console import one_sentence_errors, out, print_json
from .common import (
    Devices,
    Impairments,
    Out,
    Seeds,
    Steps,
    grouped,
    make_table,
    numbers,
    percent,
    save,
    say_where,
    words,
)

__all__ = ["drift", "identification", "simulators"]


@one_sentence_errors
def simulators(
    devices: Devices = "matvec,slm,mrr,mzi,mzi3,monarch,lowrank,identity,diffractive",
    sizes: Annotated[str, typer.Option("--sizes", help="Inputs and outputs, with commas between them.")] = "64,256",
    impairments: Impairments = "lab",
    batch: Annotated[int, typer.Option(help="Vectors a pass.", min=1)] = 256,
    repeats: Annotated[int, typer.Option(help="Passes of each; the median counts.", min=3)] = 30,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Time a simulated device, forward and backward, as a multiple of nn.Linear.

    A pass asks for a batch through all impairments and takes both gradients from the device's law; with a program, it
    sets new controls before.

    Example: astralora bench simulators --devices slm,mzi --sizes 64
    """
    with Steps("timings") as steps:
        records = benchmarks.simulators(
            words(devices),
            numbers("--sizes", sizes, least=1),
            impairments=impairments,
            batch=batch,
            repeats=repeats,
            listener=lambda _: steps.advance(None),
        )
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


@one_sentence_errors
def identification(
    devices: Devices = "mzi",
    sizes: Annotated[str, typer.Option("--sizes", help="Inputs and outputs, with commas between them.")] = "64",
    seeds: Seeds = "0,1,2",
    budget_programs: Annotated[int, typer.Option(help="The most programs of a calibration.", min=3)] = 64,
    budget_vectors: Annotated[int, typer.Option(help="The most vectors of it.", min=3)] = 4100,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Calibrate flawed chips, and compare what was found with what they were made with.

    Meshes are off by 0.2 rad and 5 % of their efficiency, other chips by 0.1 rad, 2 % and a crosstalk of 0.5 %; all
    have 8 bits in and out, and 2 % noise. Cosines are those of the control gradient to the chip's own, the least of 5
    settings.

    Example: astralora bench identification --devices mzi --sizes 64 --seeds 0
    """
    with Steps("calibrations") as steps:
        records = benchmarks.identification(
            words(devices),
            numbers("--sizes", sizes, least=2),
            numbers("--seeds", seeds),
            programs=budget_programs,
            vectors=budget_vectors,
            listener=lambda _: steps.advance(None),
        )
    if json:
        print_json(records)
        return
    table = make_table(
        "device",
        "size",
        "seed",
        "programs",
        "vectors",
        "s",
        "fits",
        "unexplained",
        "drawing",
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


@one_sentence_errors
def drift(
    seeds: Annotated[str, typer.Option("--seeds", help="Of weights and chip, with commas between them.")] = "0,1,2",
    size: Annotated[int, typer.Option(help="Inputs and outputs of the device layer.", min=16)] = 64,
    epochs: Annotated[int, typer.Option(help="Of training, on chips that hold still.", min=1)] = 10,
    task: Annotated[
        str, typer.Option("--task", help="digits, digits-normed, or both with a comma.")
    ] = "digits,digits-normed",
    vectors: Annotated[int, typer.Option(help="Reference vectors, of 'global' and 'output'.", min=2)] = 16,
    columns: Annotated[int, typer.Option(help="Outputs given up a chip, of 'columns'.", min=1)] = 4,
    output: Out = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Use chips of phase-change memory for a simulated day, with and without compensation of their drift.

    Digits are learned on chips that hold still, and written once to those that drift. Through one device layer
    ('digits') a common fading does no harm; two with batch normalisation behind each ('digits-normed') are sensitive.

    Example: astralora bench drift --seeds 0,1,2
    """
    with Steps("looks") as steps:
        records = benchmarks.drift(
            numbers("--seeds", seeds),
            tasks=words(task),
            size=size,
            epochs=epochs,
            vectors=vectors,
            columns=columns,
            listener=lambda _: steps.advance(None),
        )
    folder = save("drift", output, records, benchmarks.drift_png(records))
    if json:
        print_json(records)
        return
    kinds = list(dict.fromkeys(record["compensation"] for record in records))
    table = make_table("task", "time", *kinds)
    for key, group in grouped(records, ("task", "seconds")):
        cells = [[r["test_accuracy"] for r in group if r["compensation"] == kind] for kind in kinds]
        table.add_row(key[0], duration(key[1]), *map(percent, cells))
    out.print(table)
    out.print("Test accuracy since the program, mean and standard deviation over the seeds, in percent.\n", style="dim")
    first, last = (pick(record["seconds"] for record in records) for pick in (min, max))
    table = make_table("task", "kind", "error", "programs", "vectors", "time", "columns")
    for key, group in grouped(records, ("task", "compensation")):
        errors_then = [fmean(r["output_error"] for r in group if r["seconds"] == end) for end in (first, last)]
        programs, vectors, taken, columns = (
            max(r[what] for r in group) for what in ("programs", "vectors", "hardware_seconds", "columns")
        )
        table.add_row(
            *key,
            " to ".join(f"{100 * error:.1f}" for error in errors_then),
            f"{programs:,}",
            f"{vectors:,}",
            duration(taken),
            f"{columns:,}",
        )
    out.print(table)
    out.print(
        "Error of the layers' outputs, at first and at last, in percent; and what one seed's chips took: programs, "
        "vectors for reference and their time on hardware, and outputs given up.",
        style="dim",
    )
    say_where(folder)
