"""Report a check: the claims of a device's spec, and its measured properties."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..characterisation import Characterisation, Finding
from ..characterisation.findings import finding_row
from ..devices.testing import CheckResult
from .page import Verdict, draw, render
from .plots import ACCENT, BASELINE, DEVICE, ERROR_BAR, plot_transfer_curve

__all__ = ["check_report"]


def check_report(checks: Sequence[CheckResult], measured: Characterisation | None) -> bytes:
    """Return a self-contained page of checks and measurements; one of them may be missing."""
    name = measured.serial_number or measured.device if measured is not None else "device"
    pictures = {}
    for title, (finding_name, paint) in PICTURES.items():
        if measured is not None and finding_name in measured and measured[finding_name].data:
            pictures[title] = draw(partial(paint, finding=measured[finding_name]))
    if measured is not None and measured.spent_by_measurement:
        pictures["budget"] = draw(lambda ax: _budget(ax, measured))
    spent = (
        "" if measured is None else f"{measured.spent['programs']:,} programs, {measured.spent['vectors']:,} vectors"
    )
    return render(
        "check",
        f"Check of {name}",
        _verdicts(checks, measured),
        pictures,
        findings=[] if measured is None else [finding_row(finding.model_dump()) for finding in measured.findings],
        checks=checks,
        spent=spent,
        spec=None if measured is None else _spec(measured),
    )


def _verdicts(checks: Sequence[CheckResult], measured: Characterisation | None) -> list[Verdict]:
    """Summarise checks and measurements in sentences."""
    found = []
    failed = [result for result in checks if not result.passed]
    if checks and not failed:
        found.append(Verdict(f"All {len(checks)} checks of the contract and the spec passed.", "good"))
    found += [Verdict(f"The check {result.check!r} failed: {result.detail}", "bad") for result in failed]
    if measured is None:
        return found
    broken = measured.unmet_claims
    if not broken:
        found.append(Verdict("No measurement contradicts the spec.", "good"))
    found += [Verdict(f"Contradicts the spec: {finding.sentence}", "bad") for finding in broken]
    for name in ("dead_outputs", "dead_inputs", "stuck_controls"):
        if name in measured and measured[name].value:
            found.append(Verdict(measured[name].sentence, "warning"))
    for name in ("noise_std", "crosstalk", "drift_exponent"):
        if name in measured:
            found.append(Verdict(measured[name].sentence))
    found += [Verdict(f"{name} was not measured: {reason}.") for name, reason in measured.skipped.items()]
    return found


def _spec(measured: Characterisation) -> str:
    """Return the spec as JSON."""
    return json.dumps(measured.promised.model_dump(mode="json", exclude_defaults=True), indent=2)


# -- plots --------------------------------------------------------------------------------------


def _transfer_curve(ax: Axes, finding: Finding) -> None:
    """Plot the transfer curve beside the nominal one."""
    data = _arrays(finding)
    plot_transfer_curve(ax, data["control"], data["entry"], data["spread"], data.get("promised"))


def _crosstalk(ax: Axes, finding: Finding) -> None:
    """Plot the crosstalk kernel."""
    data = _arrays(finding)
    kernel = 100 * data["kernel"]
    middle = len(kernel) // 2
    kernel[middle, middle] = 0.0
    most = max(float(np.abs(kernel).max()), 1e-6)
    ax.imshow(kernel, cmap="RdBu_r", vmin=-most, vmax=most)
    ax.grid(visible=False)
    for (i, j), value in np.ndenumerate(kernel):
        text = "self" if i == j == middle else f"{value:.2g}"
        ink = "white" if abs(value) > 0.6 * most else "black"
        ax.text(j, i, text, ha="center", va="center", fontsize=9, color=ink)
    places = range(len(kernel))
    ax.set_xticks(places, [str(place - middle) for place in places])
    ax.set_yticks(places, [str(place - middle) for place in places])
    error = 100 * float(np.median(data["errors"][data["errors"] > 0], axis=0)) if (data["errors"] > 0).any() else 0.0
    title = f"Crosstalk, in % of a neighbour's action, +- {error:.1g}"
    ax.set(xlabel="inputs away", ylabel="outputs away", title=title)


def _stuck_controls(ax: Axes, finding: Finding) -> None:
    """Plot how much each control changes its entry, with marks at stuck ones."""
    data = _arrays(finding)
    rows, columns = data["grid"].astype(int)
    moved = data.get("moved", np.ones(rows * columns))
    shown = ax.imshow(np.sqrt(np.clip(moved, 0, None)).reshape(rows, columns), cmap="Blues", vmin=0, aspect="auto")
    ax.grid(visible=False)
    which = data["which"].astype(int)
    ax.plot(which % columns, which // columns, "x", color=ACCENT, ms=7, mew=2)
    ax.figure.colorbar(shown, ax=ax, label="relative to the median")
    ax.set(xlabel="input", ylabel="output", title="Change of each entry by its control; x: stuck")


def _noise_by_output(ax: Axes, finding: Finding) -> None:
    """Plot the noise of each output."""
    std = _arrays(finding)["std"]
    ax.bar(range(len(std)), std, color=DEVICE, label="measured, rounding included")
    if finding.promised:
        ax.axhline(finding.promised, color=ACCENT, ls="--", label="claimed, rounding excluded")
    ax.set(xlabel="output", ylabel="standard deviation, output units", title="Noise by output")
    ax.set_ylim(0, 1.3 * max(float(std.max()), finding.promised or 0.0, 1e-12))
    ax.legend(frameon=False, loc="upper right")


def _noise(ax: Axes, finding: Finding) -> None:
    """Plot a histogram of the noise beside the normal distribution."""
    data = _arrays(finding)
    samples = data["samples"]
    spread = max(float(samples.std()), 1e-12)
    ax.hist(samples, bins=60, density=True, color=DEVICE, alpha=0.7, label="measured")
    x = np.linspace(-4 * spread, 4 * spread, 200)
    ax.plot(x, np.exp(-((x / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi)), color=ACCENT, label="normal")
    ax.set(xlabel="deviation from the mean, output units", ylabel="density", title="Noise of the outputs")
    ax.legend(frameon=False)


def _spectrum(ax: Axes, finding: Finding) -> None:
    """Plot the power spectrum of the noise."""
    data = _arrays(finding)
    ax.loglog(data["frequency"], data["power"], color=DEVICE, label="measured")
    white, corner = float(data["white"]), float(data["corner"])
    ax.loglog(data["frequency"], white * (1 + corner / data["frequency"]), "--", color=ACCENT, label="white and 1/f")
    ax.set(xlabel="frequency, Hz", ylabel="power density", title="Spectrum of the noise")
    ax.legend(frameon=False)


def _linearity(ax: Axes, finding: Finding) -> None:
    """Plot the departure of the answers from a straight line."""
    data = _arrays(finding)
    x, y = data["strength"], data["response"]
    departure = y - np.polyval(np.polyfit(x, y, 1), x)
    ax.plot(x, departure, ".", ms=3, color=DEVICE, alpha=0.4, label="single answers")
    order = np.array_split(np.argsort(x), 16)
    ax.plot([x[part].mean() for part in order], [departure[part].mean() for part in order], "o-", ms=4, color=ACCENT)
    ax.plot([], [], "o-", ms=4, color=ACCENT, label="their means")
    ax.set(xlabel="input", ylabel="departure from a straight line", title="Linearity of the inputs")
    ax.legend(frameon=False)


def _dead(ax: Axes, finding: Finding) -> None:
    """Plot the signal of each output or input, to show the dead ones."""
    power = _arrays(finding)["power"]
    ax.bar(range(len(power)), np.sqrt(power), color=DEVICE)
    what = finding.name.removeprefix("dead_").removesuffix("s")
    ax.set(xlabel=what, ylabel="rms of its entries", title=f"Signal of each {what}")


def _settling(ax: Axes, finding: Finding) -> None:
    """Plot the share of a jump that has not settled, against time."""
    data = _arrays(finding)
    # A logarithmic axis cannot show the first answer, at time 0.
    time = 1e3 * np.maximum(data["time"], data["time"][1] / 2)
    error = 0.0 if finding.high is None or finding.value is None else (finding.high - finding.value) / 3
    ax.errorbar(time, 100 * data["share"], 100 * error, fmt="o", ms=4, color=DEVICE, ecolor=ERROR_BAR)
    ax.axhline(0, color=BASELINE, lw=1)
    ax.set_xscale("log")
    ax.set(xlabel="time after the program, ms", ylabel="% of the jump not settled", title="Settling")


def _drift(ax: Axes, finding: Finding) -> None:
    """Plot the gain of the answers against time."""
    data = _arrays(finding)
    ax.errorbar(
        data["time"],
        data["gain"],
        float(data["error"]),
        fmt="o",
        ms=4,
        color=DEVICE,
        ecolor=ERROR_BAR,
        label="measured",
    )
    if finding.value is not None:
        decay = data["time"] ** -finding.value
        scale = float(np.exp(np.mean(np.log(data["gain"]) - np.log(decay))))
        ax.plot(data["time"], scale * decay, "--", color=ACCENT, label=f"t^{-finding.value:.2g}")
    ax.set_xscale("log")
    ax.set(xlabel="time after the program, s", ylabel="gain of the answers", title="Drift of one setting")
    ax.legend(frameon=False)


def _budget(ax: Axes, measured: Characterisation) -> None:
    """Plot the share of each measurement in all operations."""
    names = [name for name, share in measured.spent_by_measurement.items() if any(share.values())]
    for offset, what, color in ((-0.2, "programs", ACCENT), (0.2, "vectors", DEVICE)):
        total = max(measured.spent[what], 1)
        counts = [measured.spent_by_measurement[name][what] for name in names]
        label = f"{what}, of {measured.spent[what]:,}"
        bars = ax.barh(np.arange(len(names)) + offset, [100 * c / total for c in counts], 0.4, color=color, label=label)
        ax.bar_label(bars, [f"{count:,}" for count in counts], padding=3, fontsize=8)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.set(xlabel="% of all operations", title="Operations by measurement")
    ax.legend(frameon=False, loc="lower right")


PICTURES: dict[str, tuple[str, Callable[..., None]]] = {
    "transfer curve": ("transfer_curve", _transfer_curve),
    "crosstalk": ("crosstalk", _crosstalk),
    "noise": ("noise_std", _noise),
    "noise by output": ("noise_std", _noise_by_output),
    "spectrum": ("flicker_corner", _spectrum),
    "drift": ("drift_exponent", _drift),
    "linearity": ("linearity_error", _linearity),
    "controls": ("stuck_controls", _stuck_controls),
    "outputs": ("dead_outputs", _dead),
    "inputs": ("dead_inputs", _dead),
    "settling": ("settling", _settling),
}
"""Every plot by title, in order: the name of its finding, and the function that draws it on axes."""


def _arrays(finding: Finding) -> dict[str, Any]:
    """Return the data of a finding as arrays."""
    return {name: np.asarray(value, dtype=float) for name, value in finding.data.items() if value is not None}
