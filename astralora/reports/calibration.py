"""Report a calibration: whether the law fits, and the properties of the chip."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ..characterisation.findings import finding_row, first_numbers
from ..devices import Calibration
from .page import Verdict, draw, render
from .plots import ACCENT, BASELINE, DEVICE, ERROR_BAR, plot_transfer_curve
from .text import duration

__all__ = ["calibration_report"]

# Largest number of points in a scatter plot.
_POINTS = 4000
# Largest number of constants that are shown one by one.
_MOST_SINGLE = 64
# Axis label of constants that are shown one by one.
_AXES = {
    "phase_bias": "control",
    "gamma": "control",
    "input_gain": "input",
    "input_offset": "input",
    "output_gain": "output",
    "output_offset": "output",
}


def calibration_report(record: Calibration) -> bytes:
    """Return the report as a self-contained page."""
    pictures = {}
    measured, predicted = record.tensors.get("held_out/measured"), record.tensors.get("held_out/foreseen")
    if measured is not None and predicted is not None:
        pictures["held_out"] = draw(lambda ax: _held_out(ax, measured, predicted))
        noise = 0.0 if record.fit is None else record.fit.noise_std
        unsaturated = _unsaturated(record, predicted)
        residuals = measured - predicted
        pictures["residuals"] = draw(lambda ax: _residuals(ax, residuals[unsaturated], noise))
        pictures["residuals_by_output"] = draw(lambda ax: _by_output(ax, residuals, unsaturated, noise))
    for name, values in record.constants.items():
        if values.numel() > 1:
            paint = _histogram if values.numel() > _MOST_SINGLE else _single_values
            errors, nominal = _errors_of(record, name), _nominal_of(record, name)
            pictures[name] = draw(partial(paint, name=name, values=values, errors=errors, nominal=nominal))
    if "dark/offset" in record.tensors:
        pictures["dark_level"] = draw(
            partial(
                _single_values,
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
    """Summarise the calibration in sentences."""
    fit = record.fit
    spent = f"{record.spent['programs']:,} programs and {record.spent['vectors']:,} vectors"
    if fit is None:
        return [
            Verdict("No law was fitted; only directly measured properties are corrected.", "warning"),
            *_defects(record),
            Verdict(f"The calibration took {spent}, and {duration(record.wall_seconds)} on this machine."),
        ]
    found = [Verdict(fit.verdict, "good" if fit.fits else "bad"), *_defects(record)]
    if not fit.fits:
        found.append(Verdict("This record corrects nothing, and no twin can be made from it.", "warning"))
    found.append(
        Verdict(
            f"The residual is {fit.held_out_rms:.3g} for held-out answers and "
            f"{fit.training_rms:.3g} for fitted answers; noise alone is {fit.noise_std:.3g}."
        )
    )
    found.append(Verdict(f"The calibration took {spent}, and {duration(record.wall_seconds)} on this machine."))
    return found


def _defects(record: Calibration) -> list[Verdict]:
    """Name stuck controls and dead outputs."""
    found = []
    if record.fixed is not None:
        which = (~record.fixed.isnan()).nonzero()[:, 0].tolist()
        found.append(Verdict(f"{len(which)} controls are stuck: {first_numbers(which)}.", "warning"))
    dead = record.tensors.get("dead_outputs")
    if dead is not None and len(dead):
        found.append(Verdict(f"{len(dead)} outputs are dead: {first_numbers(dead.tolist())}.", "warning"))
    return found


def _errors(record: Calibration) -> str:
    """Explain the standard errors."""
    if record.fit is None or not record.fit.fits:
        return "There are no constants, since no law fits."
    if record.fit.errors == "full":
        return "Standard errors include the correlations between constants."
    return "Standard errors assume that the other constants are exact, and are lower bounds."


def _row(record: Calibration, name: str, values: Tensor) -> dict[str, str]:
    """Return the texts of a constant for the table."""
    many = values.numel() > 1
    return {
        "name": name.replace("_", " "),
        "count": f"{values.numel():,}",
        "nominal": f"{_nominal_of(record, name):.4g}",
        "mean": f"{float(values.mean()):.4g}",
        "spread": f"{float(values.std()):.3g}" if many else "",
        "error": f"{float(_errors_of(record, name).mean()):.2g}",
    }


def _errors_of(record: Calibration, name: str) -> Tensor:
    """Return the standard errors of a constant; nan where the record has none."""
    errors = record.errors.get(name)
    return torch.full_like(record.constants[name], torch.nan) if errors is None else errors


def _nominal_of(record: Calibration, name: str) -> float:
    """Return the mean nominal value of a constant; nan where the record has none."""
    nominal = record.tensors.get(f"nominal/{name}")
    return float("nan") if nominal is None else float(nominal.mean())


def _about(record: Calibration) -> dict[str, str]:
    """Return the description of the record for the table."""
    law = "none" if record.model is None else " ".join([record.model.name, *map(str, record.model.options.items())])
    settings = "" if record.fit is None else f"{record.fit.settings} fitted, {record.fit.held_out_settings} held out"
    return {
        "device": record.device,
        "serial number": record.serial_number or "none",
        "taken": f"{record.created:%Y-%m-%d %H:%M} UTC",
        "temperature": "not reported" if record.temperature_celsius is None else f"{record.temperature_celsius:.1f} C",
        "law": law,
        "settings": settings,
        "claimed noise": f"{record.promised.noise_std:.4g}",
        "measured noise": f"{record.measured.noise_std:.4g}",
        "SHA-256": record.digest[:16] + " ...",
    }


def _held_out(ax: Axes, measured: Tensor, predicted: Tensor) -> None:
    """Plot measured against predicted answers."""
    step = max(1, measured.numel() // _POINTS)
    x, y = predicted.flatten()[::step].numpy(), measured.flatten()[::step].numpy()
    ax.plot(x, y, ".", ms=2, color=DEVICE, alpha=0.5)
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    ax.plot(ends, ends, color=ACCENT, lw=1)
    ax.set(xlabel="predicted", ylabel="measured", title="Held-out answers")


def _unsaturated(record: Calibration, predicted: Tensor) -> Tensor:
    """Return which predicted answers are within the detectors' range; saturated answers have no meaningful residual."""
    bounds = record.promised.output_range
    return predicted.isfinite() if bounds is None else (predicted > bounds[0]) & (predicted < bounds[1])


def _residuals(ax: Axes, residuals: Tensor, noise: float) -> None:
    """Plot histograms of the residuals and of the noise."""
    values = residuals.flatten().numpy()
    width = 4 * max(float(values.std()), 1e-12) if len(values) else 1.0
    ax.hist(
        values,
        bins=60,
        range=(-width, width),
        density=True,
        color=DEVICE,
        alpha=0.7,
        label="held-out answers",
    )
    if noise > 0:
        x = np.linspace(-width, width, 300)
        ax.plot(x, np.exp(-((x / noise) ** 2) / 2) / (noise * np.sqrt(2 * np.pi)), color=ACCENT, label="noise alone")
    ax.set(xlabel="measured - predicted, output units", ylabel="density", title="Residuals of the law")
    ax.set_ylim(0, 1.25 * ax.get_ylim()[1])
    ax.legend(frameon=False, loc="upper right")


def _by_output(ax: Axes, residuals: Tensor, unsaturated: Tensor, noise: float) -> None:
    """Plot the root mean square residual of each output."""
    squares = (residuals.square() * unsaturated).flatten(0, -2).sum(dim=0)
    rms = (squares / unsaturated.flatten(0, -2).sum(dim=0).clamp_min(1)).sqrt().numpy()
    ax.bar(range(len(rms)), rms, color=DEVICE)
    ax.axhline(noise, color=ACCENT, ls="--", label="noise alone")
    ax.set(xlabel="output", ylabel="rms residual", title="Residuals of the law by output")
    ax.set_ylim(0, 1.25 * max(float(rms.max()), noise, 1e-12))
    ax.legend(frameon=False, loc="upper right")


def _histogram(ax: Axes, name: str, values: Tensor, errors: Tensor, nominal: float) -> None:
    """Plot a histogram of many values."""
    bins = min(50, max(12, round(2 * values.numel() ** 0.5)))
    ax.hist(values.flatten().numpy(), bins=bins, color=DEVICE, alpha=0.8)
    ax.axvline(nominal, color=BASELINE, ls="--", label="nominal")
    title = name.replace("_", " ")
    ax.set(xlabel=f"{title}, each +- {float(errors.mean()):.2g}", ylabel="number", title=_of_chip(title))
    ax.legend(frameon=False)


def _single_values(ax: Axes, name: str, values: Tensor, errors: Tensor, nominal: float) -> None:
    """Plot a few values one by one, with their standard errors."""
    flat = values.flatten().numpy()
    ax.errorbar(range(len(flat)), flat, errors.flatten().numpy(), fmt="o", ms=4, color=DEVICE, ecolor=ERROR_BAR)
    ax.axhline(nominal, color=BASELINE, ls="--", label="nominal")
    title = name.replace("_", " ")
    ax.set(xlabel=_AXES.get(name, "number"), ylabel=title, title=_of_chip(title))
    ax.legend(frameon=False)


def _of_chip(title: str) -> str:
    """Return the title of a plot of constants."""
    return f"{title[0].upper()}{title[1:]} of this chip"


def _curve(ax: Axes, record: Calibration) -> None:
    """Plot the transfer curve."""
    control, entry, spread = (record.tensors[f"curve/{name}"].numpy() for name in ("control", "entry", "spread"))
    plot_transfer_curve(ax, control, entry, spread)
