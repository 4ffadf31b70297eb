"""The report of a calibration: does the law fit, and what is the chip like?"""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from ..devices import Calibration
from .check import finding_row
from .page import Verdict, draw, render
from .plots import ACCENT, BASELINE, DEVICE
from .text import duration

__all__ = ["calibration_report"]

# Points of a scatter plot beyond which nothing more is seen.
_POINTS = 4000
# Up to so many constants are shown one by one.
_SINGLE = 64
# What the constants of a chip are numbered by.
_ALONG = {
    "phase_bias": "control",
    "gamma": "control",
    "input_gain": "input",
    "input_offset": "input",
    "output_gain": "output",
    "output_offset": "output",
}


def calibration_report(record: Calibration) -> bytes:
    """A self-contained page."""
    pictures = {}
    measured, foreseen = record.tensors.get("held_out/measured"), record.tensors.get("held_out/foreseen")
    if measured is not None and foreseen is not None:
        pictures["held_out"] = draw(lambda ax: _held_out(ax, measured, foreseen))
        noise = 0.0 if record.fit is None else record.fit.noise_std
        inside = _inside(record, foreseen)
        left = measured - foreseen
        pictures["residuals"] = draw(lambda ax: _residuals(ax, left[inside], noise))
        pictures["residuals_by_output"] = draw(lambda ax: _by_output(ax, left, inside, noise))
    for name, values in record.constants.items():
        if values.numel() > 1:
            paint = _spread if values.numel() > _SINGLE else _each
            nominal = float(record.tensors[f"nominal/{name}"].mean())
            pictures[name] = draw(partial(paint, name=name, values=values, errors=record.errors[name], nominal=nominal))
    if "dark/offset" in record.tensors:
        pictures["dark_level"] = draw(
            partial(
                _each,
                name="dark level",
                values=record.tensors["dark/offset"],
                errors=record.tensors["dark/error"],
                nominal=0.0,
            )
        )
    if "curve/entry" in record.tensors:
        pictures["transfer_curve"] = draw(lambda ax: _curve(ax, record))
    return render(
        "calibration",
        f"Calibration of {record.serial_number or record.device}",
        _verdicts(record),
        pictures,
        constants=[_row(record, name, values) for name, values in record.constants.items()],
        errors=_errors(record),
        findings=[finding_row(finding) for finding in record.findings],
        about=_about(record),
    )


def _verdicts(record: Calibration) -> list[Verdict]:
    fit = record.fit
    spent = f"{record.spent['programs']:,} programs and {record.spent['vectors']:,} vectors, once"
    if fit is None:
        return [
            Verdict("No law was fitted; only what was measured directly is corrected.", "warning"),
            *_flaws(record),
            Verdict(f"It took {spent}, and {duration(record.wall_seconds)} here."),
        ]
    found = [Verdict(fit.verdict, "good" if fit.fits else "bad"), *_flaws(record)]
    if not fit.fits:
        found.append(Verdict("Nothing is corrected with this record, and no twin can be made from it.", "warning"))
    found.append(
        Verdict(
            f"Of answers that the fit has not seen, {fit.held_out_rms:.3g} is left where noise alone leaves "
            f"{fit.noise_std:.3g}; of those that it has, {fit.training_rms:.3g}."
        )
    )
    found.append(Verdict(f"It took {spent}, and {duration(record.wall_seconds)} here."))
    return found


def _flaws(record: Calibration) -> list[Verdict]:
    """What of the chip does nothing."""
    found = []
    if record.fixed is not None:
        which = (~record.fixed.isnan()).nonzero()[:, 0].tolist()
        found.append(Verdict(f"{len(which)} controls do not move: {_some(which)}.", "warning"))
    dead = record.tensors.get("dead_outputs")
    if dead is not None and len(dead):
        found.append(Verdict(f"{len(dead)} outputs see nothing: {_some(dead.tolist())}.", "warning"))
    return found


def _some(which: list[int]) -> str:
    return ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")


def _errors(record: Calibration) -> str:
    if record.fit is None or not record.fit.fits:
        return "There are none, since no law fits."
    if record.fit.errors == "full":
        return "Standard errors allow for what all constants have in common."
    return "Standard errors take all other constants for known, and are lower bounds."


def _row(record: Calibration, name: str, values: Tensor) -> dict[str, str]:
    many = values.numel() > 1
    return {
        "name": name.replace("_", " "),
        "count": f"{values.numel():,}",
        "nominal": f"{float(record.tensors[f'nominal/{name}'].mean()):.4g}",
        "mean": f"{float(values.mean()):.4g}",
        "spread": f"{float(values.std()):.3g}" if many else "",
        "error": f"{float(record.errors[name].mean()):.2g}",
    }


def _about(record: Calibration) -> dict[str, str]:
    law = "none" if record.model is None else " ".join([record.model.name, *map(str, record.model.options.items())])
    settings = "" if record.fit is None else f"{record.fit.settings} fitted, {record.fit.held_out_settings} held out"
    return {
        "device": record.device,
        "serial number": record.serial_number or "none",
        "taken": f"{record.created:%Y-%m-%d %H:%M} UTC",
        "temperature": "not told" if record.temperature_celsius is None else f"{record.temperature_celsius:.1f} C",
        "law": law,
        "settings": settings,
        "noise as promised": f"{record.promised.noise_std:.4g}",
        "noise as measured": f"{record.measured.noise_std:.4g}",
        "SHA-256": record.digest[:16] + " ...",
    }


def _held_out(ax: Axes, measured: Tensor, foreseen: Tensor) -> None:
    step = max(1, measured.numel() // _POINTS)
    x, y = foreseen.flatten()[::step].numpy(), measured.flatten()[::step].numpy()
    ax.plot(x, y, ".", ms=2, color=DEVICE, alpha=0.5)
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    ax.plot(ends, ends, color=ACCENT, lw=1)
    ax.set(xlabel="foreseen", ylabel="measured", title="Answers that the fit has not seen")


def _inside(record: Calibration, foreseen: Tensor) -> Tensor:
    """Answers that are foreseen within the detectors' range: at its ends, nothing is left of any."""
    bounds = record.promised.output_range
    return foreseen.isfinite() if bounds is None else (foreseen > bounds[0]) & (foreseen < bounds[1])


def _residuals(ax: Axes, left: Tensor, noise: float) -> None:
    values = left.flatten().numpy()
    width = 4 * max(float(values.std()), 1e-12) if len(values) else 1.0
    ax.hist(
        values, bins=60, range=(-width, width), density=True, color=DEVICE, alpha=0.7, label="left of held-out answers"
    )
    if noise > 0:
        x = np.linspace(-width, width, 300)
        ax.plot(x, np.exp(-((x / noise) ** 2) / 2) / (noise * np.sqrt(2 * np.pi)), color=ACCENT, label="noise alone")
    ax.set(xlabel="measured - foreseen, output units", ylabel="density", title="What the law leaves")
    ax.set_ylim(0, 1.25 * ax.get_ylim()[1])
    ax.legend(frameon=False, loc="upper right")


def _by_output(ax: Axes, left: Tensor, inside: Tensor, noise: float) -> None:
    squares = (left.square() * inside).flatten(0, -2).sum(dim=0)
    rms = (squares / inside.flatten(0, -2).sum(dim=0).clamp_min(1)).sqrt().numpy()
    ax.bar(range(len(rms)), rms, color=DEVICE)
    ax.axhline(noise, color=ACCENT, ls="--", label="noise alone")
    ax.set(xlabel="output", ylabel="rms of what is left", title="What the law leaves, by output")
    ax.set_ylim(0, 1.25 * max(float(rms.max()), noise, 1e-12))
    ax.legend(frameon=False, loc="upper right")


def _spread(ax: Axes, name: str, values: Tensor, errors: Tensor, nominal: float) -> None:
    bins = min(50, max(12, round(2 * values.numel() ** 0.5)))
    ax.hist(values.flatten().numpy(), bins=bins, color=DEVICE, alpha=0.8)
    ax.axvline(nominal, color=BASELINE, ls="--", label="as drawn")
    title = name.replace("_", " ")
    ax.set(xlabel=f"{title}, each +- {float(errors.mean()):.2g}", ylabel="number", title=_of_chip(title))
    ax.legend(frameon=False)


def _each(ax: Axes, name: str, values: Tensor, errors: Tensor, nominal: float) -> None:
    """A few values one by one, with their standard errors."""
    flat = values.flatten().numpy()
    ax.errorbar(range(len(flat)), flat, errors.flatten().numpy(), fmt="o", ms=4, color=DEVICE, ecolor="#9fbfd8")
    ax.axhline(nominal, color=BASELINE, ls="--", label="as drawn")
    title = name.replace("_", " ")
    ax.set(xlabel=_ALONG.get(name, "number"), ylabel=title, title=_of_chip(title))
    ax.legend(frameon=False)


def _of_chip(title: str) -> str:
    return f"{title[0].upper()}{title[1:]} of this chip"


def _curve(ax: Axes, record: Calibration) -> None:
    x, y, spread = (record.tensors[f"curve/{name}"].numpy() for name in ("control", "entry", "spread"))
    ax.errorbar(x, y, spread, fmt="o", ms=4, color=DEVICE, ecolor="#9fbfd8")
    ax.set(xlabel="control", ylabel="transfer matrix entry", title="Transfer curve of the controls")
