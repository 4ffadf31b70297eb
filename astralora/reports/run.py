"""Report a training run: plots, and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .page import Verdict, render
from .plots import PLOTS, RunData, overview_png, plot_png
from .text import duration, percent

__all__ = ["run_report", "verdicts"]

# Advise where more than this share of the outputs is saturated, and where the surrogate predicts less than this share
# of the answers' power.
_SATURATED = 0.2
_SOUND = 0.5


def verdicts(run: RunData) -> list[str]:
    """Summarise the run in sentences: the result first, then problems."""
    summary = run.summary
    accuracy, baseline = summary["test_accuracy"], summary["baseline_test_accuracy"]
    comparison = f", against {percent(baseline)} for the digital baseline" if baseline is not None else ""
    found = [
        f"Test accuracy {percent(accuracy)}{comparison}, with {summary['programs']:,} programs and "
        f"{summary['vectors']:,} vectors: about {duration(summary['hardware_seconds'])} on hardware."
    ]
    if summary["stopped_early"]:
        found.append(f"Stopped early: {summary['stopped_early']}.")
    if summary["device_state"] == "reopened":
        found.append("The run was resumed on a device whose internal state could not be restored.")
    repeated = summary.get("repeated", {})
    if any(repeated.values()):
        found.append(
            f"The run was killed and resumed: {repeated['programs']:,} programs and {repeated['vectors']:,} vectors "
            f"were spent in steps that had to be repeated."
        )
    if run.damage is not None:
        found.append(f"{run.damage[0].upper()}{run.damage[1:]}.")
    if summary.get("expense"):
        found.append(f"Gradients were expensive: {summary['expense']}.")
    if summary.get("needs_calibration"):
        found.append(
            f"The chip has drifted from its calibration: the twin does not predict "
            f"{percent(summary['twin_unexplained'])} of the power of its answers; calibrate it again."
        )
    last: Mapping[str, Any] = next((r for r in reversed(run.metrics) if r["event"] == "epoch"), {})
    if last.get("saturation", 0.0) > _SATURATED:
        found.append(
            f"{percent(last['saturation'])} of the device's outputs were saturated: "
            f"normalise the activations before the device to zero mean."
        )
    health = summary.get("surrogate_health")
    if health is not None and health < _SOUND:
        found.append(
            f"The surrogate predicts only {percent(health)} of the power of the device's answers: "
            f"gradients for the layers before the device are inaccurate."
        )
    return found


def run_report(run: RunData, config: str) -> Mapping[str, bytes]:
    """Return all files of the report by name: report.html, overview.png, and a PNG for each plot.

    Args:
        run: results of the run.
        config: configuration of the run, as TOML.
    """
    pictures = {name: plot_png(name, run) for name in PLOTS}
    first, *others = verdicts(run)
    page = render(
        "run",
        run.title,
        [Verdict(first), *(Verdict(sentence, "warning") for sentence in others)],
        pictures,
        summary=run.summary,
        hardware_time=duration(run.summary["hardware_seconds"]),
        config=config,
    )
    return {
        "report.html": page,
        "overview.png": overview_png(run),
        **{f"{name}.png": png for name, png in pictures.items()},
    }
