"""Plot results of benchmarks, in the style of the reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..reports.plots import as_png, prepare
from ..reports.text import percent
from .efficiency import Efficiency

__all__ = ["drift_png", "efficiency_png", "fidelity_png", "lowrank_png", "overhead_png"]

_COLOURS = ("#1b5e91", "#d9730d", "#2e8540", "#8a4fb0", "#8a8a8a", "#b0353b", "#00828c", "#7a6a00")

Record = Mapping[str, Any]


def efficiency_png(results: Sequence[Efficiency]) -> bytes:
    """Plot the best accuracy so far against programs and vectors: a row for each device, a line for each run."""
    devices = list(dict.fromkeys(result.case.device for result in results))
    colours = _coloured([_label(result.case.method, result.case.samples) for result in results])
    figure = Figure(figsize=(11, 3.2 * len(devices) + 0.6), layout="constrained")
    axes = figure.subplots(len(devices), 2, squeeze=False, sharey=True)
    target = results[0].case.target
    for row, device in zip(axes, devices, strict=True):
        for ax, (place, what) in zip(row, ((1, "programs"), (2, "vectors")), strict=True):
            prepare(ax)
            for result in results:
                if result.case.device != device:
                    continue
                label = _label(result.case.method, result.case.samples)
                spent = [point[place] for point in result.curve]
                best = list(accumulate((point[3] for point in result.curve), max))
                ax.plot(spent, best, color=colours[label], lw=1.4, alpha=0.85)
                ax.plot(spent[-1:], best[-1:], "o" if result.reached else "x", color=colours[label], ms=6)
            ax.axhline(target, ls="--", lw=1, color="#8a8a8a")
            ax.set(xscale="log", xlabel=f"{what} spent", ylim=(0.5, 1.01), title=f"{device}, until {percent(target)}")
            ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        row[0].set_ylabel("best test accuracy so far")
    marks = [Line2D([], [], color=colour, lw=2, label=label) for label, colour in colours.items()]
    marks += [
        Line2D([], [], color="#555555", marker=mark, ls="", label=what)
        for mark, what in (("o", "target reached"), ("x", "ended without"))
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    return as_png(figure)


def fidelity_png(records: Sequence[Record]) -> bytes:
    """Plot the cosine of both gradients against programs, with a row for each device."""
    devices = list(dict.fromkeys(record["device"] for record in records))
    colours = _coloured([record["method"] for record in records])
    figure = Figure(figsize=(11, 3.6 * len(devices) + 0.4), layout="constrained")
    axes = figure.subplots(len(devices), 2, squeeze=False, sharey=True)
    for row, device in zip(axes, devices, strict=True):
        for ax, what in zip(row, ("controls", "inputs"), strict=True):
            prepare(ax)
            groups: defaultdict[tuple[str, str], defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
            for record in records:
                if record["device"] == device:
                    name = (record["method"], record["data"])
                    groups[name][record["programs"]].append(record[f"cosine_{what}"])
            for (method, data), points in groups.items():
                spent = sorted(points)
                ax.plot(
                    [max(programs, 0.7) for programs in spent],
                    [fmean(points[programs]) for programs in spent],
                    "o-" if data == "uniform" else "s",
                    color=colours[method],
                    # Rings of decreasing size keep coinciding points visible.
                    mfc="none",
                    mew=1.6,
                    ms=max(11 - 2 * list(colours).index(method), 4),
                )
            ax.set(xscale="log", xlabel="programs spent", ylim=(-0.05, 1.05), title=f"{device}: gradients of {what}")
        row[0].set_ylabel("cosine to the exact gradient")
    marks = [
        Line2D([], [], color=colour, marker="o", mfc="none", mew=1.6, label=label) for label, colour in colours.items()
    ]
    if any(record["data"] == "digits" for record in records):
        marks.append(Line2D([], [], color="#555555", marker="s", ls="", label="after an epoch of digits"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    return as_png(figure)


def overhead_png(records: Sequence[Record]) -> bytes:
    """Plot the time of a step relative to a linear layer against the width."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.add_subplot()
    prepare(ax)
    names = list(dict.fromkeys((r["device"], r["impairments"], r["method"]) for r in records))
    for name, colour in zip(names, _coloured(names).values(), strict=True):
        chosen = [r for r in records if (r["device"], r["impairments"], r["method"]) == name]
        device, impairments, method = name
        ax.plot(
            [r["size"] for r in chosen],
            [r["ratio_to_linear"] for r in chosen],
            "o-",
            color=colour,
            label=f"{method} on {device}, {impairments}",
        )
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="inputs and outputs",
        ylabel="time of a step / step of nn.Linear",
        title=f"A training step, batch {records[0]['batch']}",
    )
    sizes = sorted({r["size"] for r in records})
    ax.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    ax.minorticks_off()
    ax.legend(frameon=False)
    return as_png(figure)


def drift_png(records: Sequence[Record]) -> bytes:
    """Plot accuracy and error of the outputs against time after the program, with a column for each task.

    Lines are means over the seeds, and bands show the range.
    """
    tasks = list(dict.fromkeys(record["task"] for record in records))
    colours = _coloured([record["compensation"] for record in records])
    figure = Figure(figsize=(5.2 * len(tasks) + 0.4, 6.2), layout="constrained")
    axes = figure.subplots(2, len(tasks), squeeze=False, sharex=True, sharey="row")
    named = []
    for row, what in zip(axes, ("test_accuracy", "output_error"), strict=True):
        for ax, task in zip(row, tasks, strict=True):
            prepare(ax)
            ends = {}
            for place, (kind, colour) in enumerate(colours.items()):
                groups: defaultdict[float, list[float]] = defaultdict(list)
                for record in records:
                    if (record["task"], record["compensation"]) == (task, kind):
                        groups[record["seconds"]].append(record[what])
                means = [fmean(values) for values in groups.values()]
                # Rings of decreasing size keep coinciding lines visible.
                ax.plot(list(groups), means, "o-", color=colour, lw=1.4, mfc="none", mew=1.4, ms=max(10 - 2 * place, 4))
                band = [[pick(values) for values in groups.values()] for pick in (min, max)]
                ax.fill_between(list(groups), *band, color=colour, alpha=0.12, lw=0)
                ends[kind] = list(groups)[-1], means[-1]
            ax.set(xscale="log")
            ax.set_xticks([1, 60, 3600, 86400], ["1 s", "1 min", "1 h", "1 day"])
            ax.minorticks_off()
            ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
            named.append((ax, ends))
    for ax, task in zip(axes[0], tasks, strict=True):
        ax.set_title({"digits": "one crossbar", "digits-normed": "two crossbars, each normalised"}.get(task, task))
    for ax in axes[1]:
        ax.set(xlabel="since the program", ylim=(0, None))
    axes[0][0].set_ylabel("test accuracy")
    axes[1][0].set_ylabel("error of the outputs")
    for ax, ends in named:  # after the limits of the axes are final
        _name_ends(ax, ends, colours)
    return as_png(figure)


def _name_ends(ax: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Write each line's name beside its end, without overlaps."""
    low, high = ax.get_ylim()
    apart = 0.065 * (high - low)
    below = high + apart
    for name, (x, y) in sorted(ends.items(), key=lambda end: -end[1][1]):
        below = min(y, below - apart)
        ax.annotate(
            name,
            (x, y),
            xytext=(1.03, (below - low) / (high - low)),
            textcoords="axes fraction",
            color=colours[name],
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colours[name],
                "lw": 0.6,
                "shrinkA": 0,
                "shrinkB": 5,
                "relpos": (0, 0.5),
            },
        )


def _label(method: str, samples: int | None) -> str:
    """Return the legend of a method."""
    return method if samples is None else f"{method}, {samples} {'sample' if samples == 1 else 'samples'}"


def _coloured(names: Sequence[Any]) -> dict[Any, str]:
    """Assign colours to names."""
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(dict.fromkeys(names))}


def lowrank_png(records: Sequence[Record]) -> bytes:
    """Plot the test loss against the size of the optimizer state, with a mark for each seed of each method."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.add_subplot()
    prepare(ax)
    runs = [record for record in records if record["part"] == "run"]
    for method, colour in _coloured([record["method"] for record in runs]).items():
        mine = [record for record in runs if record["method"] == method]
        ax.plot(
            [record["state_bytes"] / 1024 for record in mine],
            [record["test_loss"] for record in mine],
            "o",
            color=colour,
            mfc="none",
            mew=1.6,
            label=f"{method}, lr {mine[0]['rate']:g}",
        )
    ax.set(
        xscale="log",
        xlabel="optimizer state, KiB",
        ylabel="test loss, nats a byte",
        title=f"A small OPT after {runs[0]['steps']} steps, rank {runs[0]['rank']}",
    )
    ax.legend(frameon=False)
    return as_png(figure)


def adapters_png(rows: Sequence[Record]) -> bytes:
    """Plot the mean test loss of every method with its standard error, from the rows of `summarize`."""
    figure = Figure(figsize=(6.4, 0.5 * len(rows) + 1.6), layout="constrained")
    ax = figure.add_subplot()
    prepare(ax)
    names = [row["method"] for row in rows]
    colours = _coloured(names)
    for place, row in enumerate(rows):
        error = row["standard_error"] or 0.0
        ax.errorbar(row["test_loss"], place, xerr=error, fmt="o", color=colours[row["method"]], capsize=4)
    ax.set(
        yticks=range(len(names)),
        yticklabels=[f"{row['method']}, {row['trained_parameters']:,} trained" for row in rows],
        xlabel="test loss, nats a byte; mean and standard error",
    )
    ax.invert_yaxis()
    return as_png(figure)
