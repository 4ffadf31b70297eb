"""The report of a check: what a device promises, and what it is like."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from devices.testing import CheckResult

from ..characterisation import Characterisation, Finding
from .page import Verdict, draw, render
from .plots import ACCENT, BASELINE, DEVICE

__all__ = ["check_report"]


def check_report(checks: Sequence[CheckResult], measured: Characterisation | None) -> bytes:
    """A self-contained page of checks and measurements; either may be missing."""
    name = measured.serial_number or measured.device if measured is not None else "device"
    pictures = {}
    for finding in measured.findings if measured is not None else ():
        paint = PICTURES.get(finding.name)
        if paint is not None and finding.data:
            pictures[finding.name] = draw(partial(paint, finding=finding))
    spent = (
        "" if measured is None else f"{measured.spent['programs']:,} programs, {measured.spent['vectors']:,} vectors"
    )
    return render(
        "check",
        f"Check of {name}",
        _verdicts(checks, measured),
        pictures,
        findings=[] if measured is None else [_row(finding) for finding in measured.findings],
        sentences=[] if measured is None else [f"{finding.sentence}" for finding in measured.findings],
        checks=checks,
        spent=spent,
        spec=None if measured is None else _spec(measured),
    )


def _verdicts(checks: Sequence[CheckResult], measured: Characterisation | None) -> list[Verdict]:
    found = []
    failed = [result for result in checks if not result.passed]
    if checks and not failed:
        found.append(Verdict(f"All {len(checks)} checks of the contract and the spec passed.", "good"))
    found += [Verdict(f"The check {result.check!r} failed: {result.detail}", "bad") for result in failed]
    if measured is None:
        return found
    broken = measured.broken_promises
    if not broken:
        found.append(Verdict("No measurement contradicts what the device promises.", "good"))
    found += [Verdict(f"Not as promised: {finding.sentence}", "bad") for finding in broken]
    for name in ("dead_outputs", "dead_inputs", "stuck_controls"):
        if name in measured and measured[name].value:
            found.append(Verdict(measured[name].sentence, "warning"))
    for name in ("noise_std", "crosstalk", "drift_exponent"):
        if name in measured:
            found.append(Verdict(measured[name].sentence))
    found += [Verdict(f"{name} was not measured: {reason}.") for name, reason in measured.skipped.items()]
    return found


def _row(finding: Finding) -> dict[str, str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    return {
        "name": finding.name.replace("_", " "),
        "value": number(finding.value),
        "low": number(finding.low),
        "high": number(finding.high),
        "unit": finding.unit,
        "promised": number(finding.promised),
        "kind": "bad" if finding.agrees is False else "",
    }


def _spec(measured: Characterisation) -> str:
    return json.dumps(measured.promised.model_dump(mode="json", exclude_defaults=True), indent=2)


# -- pictures -----------------------------------------------------------------------------------


def _transfer_curve(ax: Axes, finding: Finding) -> None:
    data = _arrays(finding)
    ax.errorbar(
        data["control"], data["entry"], data["spread"], fmt="o", ms=4, color=DEVICE, ecolor="#9fbfd8", label="measured"
    )
    if "promised" in data:
        ax.plot(data["control"], data["promised"], "--", color=ACCENT, label="as drawn")
    ax.set(xlabel="control", ylabel="transfer matrix entry", title="Transfer curve of the controls")
    ax.legend(frameon=False)


def _crosstalk(ax: Axes, finding: Finding) -> None:
    kernel = 100 * _arrays(finding)["kernel"]
    middle = len(kernel) // 2
    kernel[middle, middle] = 0.0
    most = max(float(np.abs(kernel).max()), 1e-6)
    ax.imshow(kernel, cmap="RdBu_r", vmin=-most, vmax=most)
    ax.grid(visible=False)
    for (i, j), value in np.ndenumerate(kernel):
        text = "itself" if i == j == middle else f"{value:.2g}"
        ax.text(j, i, text, ha="center", va="center", fontsize=9)
    places = range(len(kernel))
    ax.set_xticks(places, [str(place - middle) for place in places])
    ax.set_yticks(places, [str(place - middle) for place in places])
    ax.set(xlabel="inputs away", ylabel="outputs away", title="Crosstalk, in % of a neighbour's action")


def _noise(ax: Axes, finding: Finding) -> None:
    data = _arrays(finding)
    samples = data["samples"]
    spread = max(float(samples.std()), 1e-12)
    ax.hist(samples, bins=60, density=True, color=DEVICE, alpha=0.7, label="measured")
    x = np.linspace(-4 * spread, 4 * spread, 200)
    ax.plot(x, np.exp(-((x / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi)), color=ACCENT, label="normal")
    ax.set(xlabel="deviation from the mean, output units", ylabel="density", title="Noise of the outputs")
    ax.legend(frameon=False)


def _spectrum(ax: Axes, finding: Finding) -> None:
    data = _arrays(finding)
    ax.loglog(data["frequency"], data["power"], color=DEVICE, label="measured")
    white, corner = float(data["white"]), float(data["corner"])
    ax.loglog(data["frequency"], white * (1 + corner / data["frequency"]), "--", color=ACCENT, label="white and 1/f")
    ax.set(xlabel="frequency, Hz", ylabel="power density", title="Spectrum of the noise")
    ax.legend(frameon=False)


def _linearity(ax: Axes, finding: Finding) -> None:
    data = _arrays(finding)
    x, y = data["strength"], data["response"]
    ax.plot(x, y - np.polyval(np.polyfit(x, y, 1), x), ".", ms=3, color=DEVICE)
    ax.set(xlabel="input", ylabel="departure from a straight line", title="Linearity of the inputs")


def _dead(ax: Axes, finding: Finding) -> None:
    power = _arrays(finding)["power"]
    ax.bar(range(len(power)), np.sqrt(power), color=DEVICE)
    what = finding.name.removeprefix("dead_").removesuffix("s")
    ax.set(xlabel=what, ylabel="rms of its entries", title=f"How much each {what} answers")


def _settling(ax: Axes, finding: Finding) -> None:
    data = _arrays(finding)
    ax.plot(1e3 * data["time"], 100 * data["share"], "o-", ms=4, color=DEVICE)
    ax.axhline(0, color=BASELINE, lw=1)
    ax.set(xlabel="time after the program, ms", ylabel="% of the jump still to come", title="Settling")


def _drift(ax: Axes, finding: Finding) -> None:
    data = _arrays(finding)
    ax.errorbar(data["time"], data["gain"], float(data["error"]), fmt="o-", ms=4, color=DEVICE)
    ax.set_xscale("log")
    ax.set(
        xlabel="time after the program, s", ylabel="strength of the answers", title="Drift of a setting that is held"
    )


PICTURES: dict[str, Callable[..., None]] = {
    "transfer_curve": _transfer_curve,
    "crosstalk": _crosstalk,
    "noise_std": _noise,
    "flicker_corner": _spectrum,
    "linearity_error": _linearity,
    "dead_outputs": _dead,
    "settling": _settling,
    "drift_exponent": _drift,
}
"""What is drawn of a finding, by its name; called with axes and the finding."""


def _arrays(finding: Finding) -> dict[str, Any]:
    return {name: np.asarray(value, dtype=float) for name, value in finding.data.items()}
