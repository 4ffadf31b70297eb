"""``astralora bench``: measurements of astralora itself."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from devices.files import write_atomically

from .. import benchmarks
from ..errors import ConfigurationError
from ..reports import duration
from . import options as o
from .console import errors, one_sentence_errors, out, print_json

__all__ = ["bench"]

bench = typer.Typer(help="Measure astralora itself.", no_args_is_help=True)

Devices = Annotated[str, typer.Option("--devices", help="Registered devices, with commas between them.")]
Methods = Annotated[
    str,
    typer.Option("--methods", help="Methods, estimators, surrogates, or pairs such as 'orthogonal+online'."),
]
Seeds = Annotated[str, typer.Option("--seeds", help="Of chip, data and estimator, with commas between them.")]
Impairments = Annotated[str, typer.Option("--impairments", help="Of the simulated devices: ideal, lab or harsh.")]
Samples = Annotated[str, typer.Option("--samples", help="Perturbations a step, for methods that perturb.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder for records and picture. (default: a new one in runs/)", file_okay=False),
]


@bench.callback()
def _root() -> None:
    pass


@bench.command()
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
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Count the hardware operations that digits take to a test accuracy, method by method.

    'paper' gets each number of samples, its best step on the device, and ten times the epochs.

    A run ends early when it can not win any more, against other numbers of samples or by --patience.

    Example: astralora bench efficiency --devices mrr --methods auto --seeds 0
    """
    width, height = _size(sizes)
    with _Steps("races") as steps:
        results = benchmarks.efficiency(
            _words(devices),
            _words(methods),
            _numbers("--seeds", seeds),
            impairments=impairments,
            target=target,
            patience=patience,
            epochs=epochs,
            samples=_numbers("--samples", samples, least=1),
            task=task,
            size=(width, height),
            jobs=jobs,
            listener=lambda _, total: steps.advance(total),
        )
    records = [result.record() for result in results]
    curves = [{**result.record(), "curve": result.curve} for result in results]
    folder = _save("efficiency", output, records, benchmarks.efficiency_png(results), curves=curves)
    if json:
        print_json(records)
        return
    _efficiency_table(records)
    _where(folder)


@bench.command()
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
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Compare both gradients with the exact ones, against what was spent on them.

    Example: astralora bench fidelity --devices mrr --methods auto,paper --seeds 0
    """
    with _Steps("gradients") as steps:
        records = benchmarks.fidelity(
            _words(devices),
            _words(methods),
            _numbers("--sizes", sizes, least=1),
            _numbers("--seeds", seeds),
            impairments=impairments,
            samples=_numbers("--samples", samples, least=1),
            batch=batch,
            listener=lambda _: steps.advance(None),
        )
    if not records:
        raise ConfigurationError("none of these methods suits any of these devices; see 'astralora devices'")
    folder = _save("fidelity", output, records, benchmarks.fidelity_png(records))
    if json:
        print_json(records)
        return
    keys = ("device", "size", "data", "method", "samples")
    table = _table(*keys, "programs", "vectors", "controls", "predicted", "inputs")
    for key, group in _groups(records, keys):
        predictions = [r["predicted_controls"] for r in group if r["predicted_controls"] is not None]
        table.add_row(
            *("" if part is None else str(part) for part in key),
            f"{fmean(r['programs'] for r in group):,.0f}",
            f"{fmean(r['vectors'] for r in group):,.0f}",
            _spread([r["cosine_controls"] for r in group]),
            f"{fmean(predictions):.3f}" if predictions else "",
            _spread([r["cosine_inputs"] for r in group]),
        )
    out.print(table)
    out.print("Cosines to the exact gradients, mean and range over the seeds.", style="dim")
    _where(folder)


@bench.command()
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
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Time a training step of a simulated layer as a multiple of that of nn.Linear.

    Example: astralora bench overhead --methods auto,exact --sizes 128,256
    """
    with _Steps("timings") as steps:
        records = benchmarks.overhead(
            _words(devices),
            _words(methods),
            _numbers("--sizes", sizes, least=1),
            impairments=impairments,
            batch=batch,
            cycles=cycles,
            samples=samples,
            listener=lambda _: steps.advance(None),
        )
    folder = _save("overhead", output, records, benchmarks.overhead_png(records))
    if json:
        print_json(records)
        return
    table = _table("device", "impairments", "method", "size", "step / nn.Linear", "growth")
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
    _where(folder)


@bench.command()
@one_sentence_errors
def simulators(
    devices: Devices = "matvec,slm,mrr,mzi,mzi3,monarch,lowrank,identity,diffractive",
    sizes: Annotated[str, typer.Option("--sizes", help="Inputs and outputs, with commas between them.")] = "64,256",
    impairments: Impairments = "lab",
    batch: Annotated[int, typer.Option(help="Vectors a pass.", min=1)] = 256,
    repeats: Annotated[int, typer.Option(help="Passes of each; the median counts.", min=3)] = 30,
    json: o.Json = False,
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Time a simulated device, forward and backward, as a multiple of nn.Linear.

    A pass asks for a batch through all impairments and takes both gradients from the device's law; with a program, it
    sets new controls before.

    Example: astralora bench simulators --devices slm,mzi --sizes 64
    """
    with _Steps("timings") as steps:
        records = benchmarks.simulators(
            _words(devices),
            _numbers("--sizes", sizes, least=1),
            impairments=impairments,
            batch=batch,
            repeats=repeats,
            listener=lambda _: steps.advance(None),
        )
    if json:
        print_json(records)
        return
    table = _table("device", "size", "ms a pass", "x nn.Linear", "x nn.Linear(256, 256)", "the same with a program")
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


@bench.command()
@one_sentence_errors
def identification(
    devices: Devices = "mzi",
    sizes: Annotated[str, typer.Option("--sizes", help="Inputs and outputs, with commas between them.")] = "64",
    seeds: Seeds = "0,1,2",
    budget_programs: Annotated[int, typer.Option(help="The most programs of a calibration.", min=3)] = 64,
    budget_vectors: Annotated[int, typer.Option(help="The most vectors of it.", min=3)] = 4100,
    json: o.Json = False,
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Calibrate flawed chips, and compare what was found with what they were made with.

    Meshes are off by 0.2 rad and 5 % of their efficiency, other chips by 0.1 rad, 2 % and a crosstalk of 0.5 %; all
    have 8 bits in and out, and 2 % noise. Cosines are those of the control gradient to the chip's own, the least of 5
    settings.

    Example: astralora bench identification --devices mzi --sizes 64 --seeds 0
    """
    with _Steps("calibrations") as steps:
        records = benchmarks.identification(
            _words(devices),
            _numbers("--sizes", sizes, least=2),
            _numbers("--seeds", seeds),
            programs=budget_programs,
            vectors=budget_vectors,
            listener=lambda _: steps.advance(None),
        )
    if json:
        print_json(records)
        return
    table = _table(
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


@bench.command()
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
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Use chips of phase-change memory for a simulated day, with and without compensation of their drift.

    Digits are learned on chips that hold still, and written once to those that drift. Through one device layer
    ('digits') a common fading does no harm; two with batch normalisation behind each ('digits-normed') are sensitive.

    Example: astralora bench drift --seeds 0,1,2
    """
    with _Steps("looks") as steps:
        records = benchmarks.drift(
            _numbers("--seeds", seeds),
            tasks=_words(task),
            size=size,
            epochs=epochs,
            vectors=vectors,
            columns=columns,
            listener=lambda _: steps.advance(None),
        )
    folder = _save("drift", output, records, benchmarks.drift_png(records))
    if json:
        print_json(records)
        return
    kinds = list(dict.fromkeys(record["compensation"] for record in records))
    table = _table("task", "time", *kinds)
    for key, group in _groups(records, ("task", "seconds")):
        cells = [[r["test_accuracy"] for r in group if r["compensation"] == kind] for kind in kinds]
        table.add_row(key[0], duration(key[1]), *map(_percent, cells))
    out.print(table)
    out.print("Test accuracy since the program, mean and standard deviation over the seeds, in percent.\n", style="dim")
    first, last = (pick(record["seconds"] for record in records) for pick in (min, max))
    table = _table("task", "kind", "error", "programs", "vectors", "time", "columns")
    for key, group in _groups(records, ("task", "compensation")):
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
    _where(folder)


@bench.command()
@one_sentence_errors
def lowrank(
    methods: Annotated[
        str, typer.Option("--methods", help="Known are adam, flora, flora-8bit and flora-published.")
    ] = "adam,flora",
    seeds: Annotated[str, typer.Option("--seeds", help="Of weights and data, with commas between them.")] = "0,1,2",
    steps: Annotated[int, typer.Option(help="Of training, for every method.", min=1)] = 1500,
    width: Annotated[int, typer.Option(help="Of the model, a multiple of 16.", min=16)] = 64,
    layers: Annotated[int, typer.Option(help="Of the model.", min=1)] = 2,
    rank: Annotated[int | None, typer.Option(help="(default: an eighth of the width)", min=1)] = None,
    output: Out = None,
    json: o.Json = False,
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Train a small OPT on English text with little optimizer state, and with Adam's.

    Learning rates are chosen first, on another seed, from as many for every method.

    Example: astralora bench lowrank --methods adam,flora --seeds 0
    """
    with _Steps("runs") as progress:
        records = benchmarks.lowrank(
            _words(methods),
            _numbers("--seeds", seeds),
            steps=steps,
            width=width,
            layers=layers,
            rank=rank,
            listener=lambda _, total: progress.advance(total),
        )
    folder = _save("lowrank", output, records, benchmarks.lowrank_png(records))
    if json:
        print_json(records)
        return
    table = _table("method", "rate", "test loss", "state bytes", "trainable", "parameters")
    for (name, rate), group in _groups([r for r in records if r["part"] == "run"], ("method", "rate")):
        table.add_row(
            name,
            f"{rate:g}",
            _spread([r["test_loss"] for r in group]),
            f"{group[0]['state_bytes']:,}",
            f"{group[0]['trainable']:,}",
            f"{group[0]['parameters']:,}",
        )
    out.print(table)
    out.print("Nats a byte, mean and range over the seeds.", style="dim")
    _where(folder)


@bench.command()
@one_sentence_errors
def session(
    device: Annotated[str, typer.Option(help="Registered device.")] = "matvec",
    impairments: Annotated[str, typer.Option(help="Of a simulated device.")] = "ideal",
    size: Annotated[int, typer.Option(help="Inputs and outputs.", min=1)] = 256,
    batch: Annotated[int, typer.Option(help="Vectors per query.", min=1)] = 256,
    rounds: Annotated[int, typer.Option(help="Pairs of measurements.", min=10)] = 2000,
    json: o.Json = False,
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Time a query through a session against the same query on the bare device.

    Example: astralora bench session --device mrr --impairments lab
    """
    result = benchmarks.session_overhead(device, impairments, size, batch, rounds)
    if json:
        print_json([result])
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("bare query, median", f"{result['raw_us']:.1f} us")
    table.add_row("through a session, median", f"{result['session_us']:.1f} us")
    table.add_row(
        "overhead",
        f"{100 * result['overhead']:.1f} %  (quartiles "
        f"{100 * result['overhead_low']:.1f} to {100 * result['overhead_high']:.1f} %)",
    )
    out.print(table)


@bench.command()
@one_sentence_errors
def transport(
    protocol: Annotated[str, typer.Option(help="Wire protocol: frames or scpi.")] = "frames",
    size: Annotated[int, typer.Option(help="Inputs and outputs.", min=1)] = 256,
    batch: Annotated[int, typer.Option(help="Vectors per query.", min=1)] = 4096,
    rounds: Annotated[int, typer.Option(help="Pairs of measurements.", min=10)] = 500,
    json: o.Json = False,
    debug: o.Debug = False,  # noqa: ARG001
) -> None:
    """Time a query along a wire protocol against a bare socket that copies the same bytes.

    Example: astralora bench transport --protocol frames
    """
    result = benchmarks.transport(protocol, size, batch, rounds)
    if json:
        print_json([result])
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_row("bare socket, median", f"{result['socket_us']:.0f} us")
    speed = f"{result['driver_megabytes_per_second']:.0f} MB/s"
    table.add_row("driver and emulator, median", f"{result['driver_us']:.0f} us  ({speed})")
    quartiles = f"{100 * result['share_low']:.0f} to {100 * result['share_high']:.0f} %"
    table.add_row("share of the socket's throughput", f"{100 * result['share']:.0f} %  (quartiles {quartiles})")
    added, share = result["bytes_added"], 100 * result["bytes_added_share"]
    table.add_row("bytes added by the protocol", f"{added} of {result['bytes_of_values']:,}  ({share:.3f} %)")
    out.print(table)


def _efficiency_table(records: Sequence[dict[str, Any]]) -> None:
    keys = ("device", "method", "samples")
    table = _table(*keys, "reached", "epochs", "programs", "vectors", "best accuracy")
    for key, group in _groups(records, keys):
        reached = [r for r in group if r["reached"]]
        table.add_row(
            *("" if part is None else str(part) for part in key),
            f"{len(reached)} of {len(group)}" + (" *" if any(r["outdone"] for r in group) else ""),
            *(_range([r[what] for r in reached]) for what in ("epochs", "programs", "vectors")),
            " to ".join(f"{100 * pick(r['best_accuracy'] for r in group):.1f}" for pick in (min, max)) + " %",
        )
    out.print(table)
    out.print("Least to most over the seeds that reached the target; evaluations are not counted.", style="dim")
    if any(r["outdone"] for r in records):
        out.print("* some were given up, having spent far more than is needed otherwise; see --help.", style="dim")


class _Steps:
    """A progress bar on standard error, for work of a length that may show only on the way."""

    def __init__(self, what: str) -> None:
        self._progress = Progress(
            TextColumn(what),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=errors,
            transient=True,
        )
        self._bar = self._progress.add_task("", total=None)

    def __enter__(self) -> _Steps:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, total: int | None) -> None:
        """One more is done, of so many."""
        self._progress.update(self._bar, advance=1, total=total)


def _save(name: str, folder: Path | None, records: list[dict[str, Any]], picture: bytes, **more: Any) -> Path:
    if folder is None:
        folder = Path("runs") / f"bench-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, content in {name: records, **more}.items():
        write_atomically(folder / f"{kind}.json", json_module.dumps(content, indent=1))
    write_atomically(folder / f"{name}.png", picture)
    return folder


def _where(folder: Path) -> None:
    out.print(f"records and picture: {folder}", soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in ("device", "impairments", "method", "data") else "right")
    return table


def _groups(
    records: Sequence[dict[str, Any]], keys: Sequence[str]
) -> list[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(tuple(record[key] for key in keys), []).append(record)
    return list(groups.items())


def _range(values: Sequence[int]) -> str:
    if not values:
        return "never"
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    around = "" if f"{low:.3f}" == f"{high:.3f}" else f" ({low:.3f} to {high:.3f})"
    return f"{fmean(values):.3f}{around}"


def _percent(values: Sequence[float]) -> str:
    around = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{around}"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(option: str, text: str, least: int = 0) -> list[int]:
    return _parsed(text, lambda number: number >= least, f"{option} takes whole numbers of at least {least}")


def _size(text: str) -> tuple[int, int]:
    parts = _parsed(text.replace("x", ","), lambda number: number >= 1, "--sizes takes INPUTSxOUTPUTS")
    if len(parts) == 1:
        return parts[0], parts[0]
    if len(parts) != 2:
        raise ConfigurationError(f"--sizes takes INPUTSxOUTPUTS, such as 256x128, not {text!r}")
    return parts[0], parts[1]


def _parsed(text: str, legal: Callable[[int], bool], expected: str) -> list[int]:
    try:
        values = [int(word) for word in _words(text)]
    except ValueError:
        values = []
    if not values or not all(map(legal, values)):
        raise ConfigurationError(f"{expected}, not {text!r}")
    return values
