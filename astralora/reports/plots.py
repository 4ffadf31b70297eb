"""Draw the plots of a run.

Figures are made without pyplot, so that no global state is touched.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from torch import Tensor

from ..devices.html import html_table
from .text import duration, percent

__all__ = [
    "ACCENT",
    "BASELINE",
    "DEVICE",
    "ERROR_BAR",
    "PLOTS",
    "RunData",
    "as_png",
    "overview_png",
    "plot_png",
    "plot_transfer_curve",
    "prepare",
]

DEVICE = "#1b5e91"
BASELINE = "#8a8a8a"
ACCENT = "#d9730d"
ERROR_BAR = "#9fbfd8"


@dataclass(frozen=True, slots=True)
class RunData:
    """Hold the results of a run.

    Attributes:
        summary: content of summary.json.
        metrics: records of metrics.jsonl.
        controls_before: initial controls of each device layer, (num_controls,).
        controls_after: final controls of each device layer, (num_controls,).
        control_unit: unit of the controls.
        damage: sentence about damaged lines of metrics.jsonl; None if there are none.
    """

    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    controls_before: Sequence[Tensor]
    controls_after: Sequence[Tensor]
    control_unit: str
    damage: str | None = None

    def series(self, event: str, x: str, y: str) -> tuple[list[float], list[float]]:
        """Return two fields of the records of one event; records without both fields are left out."""
        records = [r for r in self.metrics if r["event"] == event and x in r and y in r]
        return [r[x] for r in records], [r[y] for r in records]

    @property
    def title(self) -> str:
        """Describe the run in a few words."""
        s = self.summary
        return f"{s['task']} through {s['device']} ({s['impairments']}), method {s['method']}, seed {s['seed']}"

    def _repr_html_(self) -> str:
        """Return the summary as a table for notebooks."""
        s = self.summary
        rows: list[tuple[str, object]] = [
            ("test accuracy", percent(s["test_accuracy"])),
            ("best test accuracy", percent(s["best_test_accuracy"])),
            ("digital baseline", percent(s["baseline_test_accuracy"])),
            ("epochs", s["epochs"]),
            ("steps", s["steps"]),
            *((name, f"{s[name]:,}") for name in ("programs", "queries", "vectors")),
            ("time on hardware", duration(s["hardware_seconds"])),
        ]
        if s["stopped_early"]:
            rows.append(("stopped early", s["stopped_early"]))
        return html_table(self.title, rows)


def _accuracy_by_epoch(ax: Axes, run: RunData) -> None:
    """Plot the accuracy against the epoch."""
    epochs, digital = run.series("baseline", "epoch", "test_accuracy")
    if epochs:
        ax.plot(epochs, digital, "o--", color=BASELINE, ms=4, label="digital baseline")
    epochs, accuracy = run.series("epoch", "epoch", "test_accuracy")
    ax.plot(epochs, accuracy, "o-", color=DEVICE, ms=5, label="through the device")
    ax.set(xlabel="epoch", ylabel="test accuracy", title="Accuracy by epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _accuracy_axis(ax)


def _accuracy_by_programs(ax: Axes, run: RunData) -> None:
    """Plot the accuracy against the programs."""
    programs, accuracy = run.series("epoch", "programs", "test_accuracy")
    ax.plot(programs, accuracy, "o-", color=DEVICE, ms=5, label="through the device")
    baseline = run.summary.get("baseline_test_accuracy")
    if baseline is not None:
        ax.axhline(baseline, ls="--", color=BASELINE, label=f"digital baseline, {percent(baseline)}")
    ax.set(xlabel="programs spent", ylabel="test accuracy", title="Accuracy by hardware operations")
    ax.set_xlim(left=0)
    _accuracy_axis(ax)


def _accuracy_axis(ax: Axes) -> None:
    """Format the axis of an accuracy."""
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    ax.legend(loc="lower right", frameon=False)


def _surrogate_residual(ax: Axes, run: RunData) -> None:
    """Plot the residual of the surrogate against the step."""
    steps, residual = run.series("step", "step", "surrogate_residual")
    ax.plot(steps, residual, ".", color=DEVICE, ms=3, alpha=0.5, label="each step")
    steps, residual = run.series("epoch", "step", "surrogate_residual")
    ax.plot(steps, residual, "-", color=ACCENT, lw=2, label="mean of the epoch")
    ax.set(
        xlabel="step",
        ylabel="|Y - predicted| / |Y|",
        title="Surrogate residual on the latest batch",
    )
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)


def _controls(ax: Axes, run: RunData) -> None:
    """Plot histograms of the controls before and after training."""
    before = [value for part in run.controls_before for value in part.tolist()]
    after = [value for part in run.controls_after for value in part.tolist()]
    edges = (min(*before, *after), max(*before, *after))
    ax.hist(before, bins=60, range=edges, color=BASELINE, alpha=0.6, label="before training")
    ax.hist(after, bins=60, range=edges, color=DEVICE, histtype="step", lw=1.8, label="after")
    unit = f" ({run.control_unit})" if run.control_unit else ""
    ax.set(xlabel=f"control{unit}", ylabel="number of controls", title="Controls before and after")
    ax.legend(frameon=False)


def _health(ax: Axes, run: RunData) -> None:
    """Plot the share of the answers' power that the surrogate predicts."""
    steps, health = run.series("step", "step", "surrogate_health")
    ax.plot(steps, [100 * value for value in health], color=DEVICE)
    ax.set(xlabel="step", ylabel="% of the answers' power", title="Gradient health: power that the surrogate predicts")
    ax.set_ylim(0, 102)


def _budget(ax: Axes, run: RunData) -> None:
    """Plot programs and vectors by purpose."""
    parts = run.summary["usage_by_purpose"]
    names = list(parts)
    for place, (what, colour) in enumerate((("programs", ACCENT), ("vectors", DEVICE))):
        values = [max(parts[name][what], 0.5) for name in names]
        ax.barh([i + 0.4 * place - 0.2 for i in range(len(names))], values, 0.38, color=colour, label=what)
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="number", title="Operations by purpose")
    ax.legend(frameon=False)


PLOTS: dict[str, Callable[[Axes, RunData], None]] = {
    "accuracy_by_epoch": _accuracy_by_epoch,
    "accuracy_by_programs": _accuracy_by_programs,
    "surrogate_residual": _surrogate_residual,
    "controls": _controls,
    "gradient_health": _health,
    "budget": _budget,
}
"""Every plot of a run by name."""

_OVERVIEW = ("accuracy_by_epoch", "accuracy_by_programs", "surrogate_residual", "controls")


def plot_png(name: str, run: RunData) -> bytes:
    """Return one plot as PNG."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    _draw(figure.add_subplot(), name, run)
    return as_png(figure)


def overview_png(run: RunData) -> bytes:
    """Return the most important plots as one PNG."""
    figure = Figure(figsize=(11, 7.2), layout="constrained")
    figure.suptitle(run.title, fontsize=13)
    for place, name in enumerate(_OVERVIEW, start=1):
        _draw(figure.add_subplot(2, 2, place), name, run)
    return as_png(figure)


def _draw(ax: Axes, name: str, run: RunData) -> None:
    """Draw a plot by name."""
    prepare(ax)
    PLOTS[name](ax, run)


def plot_transfer_curve(
    ax: Axes, control: ArrayLike, entry: ArrayLike, spread: ArrayLike, nominal: ArrayLike | None = None
) -> None:
    """Plot entries of the transfer matrix against their control, and the nominal curve if it is known."""
    ax.errorbar(control, entry, spread, fmt="o", ms=4, color=DEVICE, ecolor=ERROR_BAR, label="measured")
    if nominal is not None:
        ax.plot(control, nominal, "--", color=ACCENT, label="nominal")
    ax.set(xlabel="control", ylabel="transfer matrix entry", title="Transfer curve of the controls")
    ax.legend(frameon=False)


def prepare(ax: Axes) -> None:
    """Apply the common style to axes."""
    ax.grid(color="#e4e4e4")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def as_png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
