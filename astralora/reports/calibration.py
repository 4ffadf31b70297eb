"""The report of a calibration: does the law fit, and what is the chip like?"""

from __future__ import annotations

from functools import partial

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from devices import Calibration

from .page import Verdict, draw, render
from .plots import ACCENT, BASELINE, DEVICE
from .text import duration

__all__ = ["calibration_report"]

# Points of a scatter plot beyond which nothing more is seen.
_POINTS = 4000


def calibration_report(record: Calibration) -> bytes:
    """A self-contained page."""
    pictures = {}
    measured, foreseen = record.tensors.get("held_out/measured"), record.tensors.get("held_out/foreseen")
    if measured is not None and foreseen is not None:
        pictures["held_out"] = draw(lambda ax: _held_out(ax, measured, foreseen))
        noise = 0.0 if record.fit is None else record.fit.noise_std
        pictures["residuals"] = draw(lambda ax: _residuals(ax, measured - foreseen, noise))
        pictures["residuals_by_output"] = draw(lambda ax: _by_output(ax, measured - foreseen, noise))
    for name, values in record.constants.items():
        if values.numel() > 8:
            nominal = record.tensors[f"nominal/{name}"]
            pictures[name] = draw(partial(_spread, name=name, values=values, nominal=nominal))
    return render(
        "calibration",
        f"Calibration of {record.serial_number or record.device}",
        _verdicts(record),
        pictures,
        constants=[_row(record, name, values) for name, values in record.constants.items()],
        errors=_errors(record),
        about=_about(record),
    )


def _verdicts(record: Calibration) -> list[Verdict]:
    fit = record.fit
    if fit is None:
        return [Verdict("No law was fitted; only what was measured directly is corrected.", "warning")]
    found = [Verdict(fit.verdict, "good" if fit.fits else "bad")]
    if not fit.fits:
        found.append(Verdict("Nothing is corrected with this record, and no twin can be made from it.", "warning"))
    found.append(
        Verdict(
            f"Of answers that the fit has not seen, {fit.held_out_rms:.3g} is left where noise alone leaves "
            f"{fit.noise_std:.3g}; of those that it has, {fit.training_rms:.3g}."
        )
    )
    found.append(
        Verdict(
            f"It took {record.spent['programs']:,} programs and {record.spent['vectors']:,} vectors, once, "
            f"and {duration(record.wall_seconds)} here."
        )
    )
    return found


def _errors(record: Calibration) -> str:
    if record.fit is None or not record.fit.fits:
        return "There are none where no law fits."
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


def _residuals(ax: Axes, left: Tensor, noise: float) -> None:
    values = left.flatten().numpy()
    width = 4 * max(float(values.std()), 1e-12)
    ax.hist(
        values, bins=80, range=(-width, width), density=True, color=DEVICE, alpha=0.7, label="left of held-out answers"
    )
    if noise > 0:
        x = np.linspace(-width, width, 300)
        ax.plot(x, np.exp(-((x / noise) ** 2) / 2) / (noise * np.sqrt(2 * np.pi)), color=ACCENT, label="noise alone")
    ax.set(xlabel="measured - foreseen, output units", ylabel="density", title="What the law leaves")
    ax.legend(frameon=False)


def _by_output(ax: Axes, left: Tensor, noise: float) -> None:
    rms = left.flatten(0, -2).square().mean(dim=0).sqrt().numpy()
    ax.bar(range(len(rms)), rms, color=DEVICE)
    ax.axhline(noise, color=ACCENT, ls="--", label="noise alone")
    ax.set(xlabel="output", ylabel="rms of what is left", title="What the law leaves, by output")
    ax.legend(frameon=False)


def _spread(ax: Axes, name: str, values: Tensor, nominal: Tensor) -> None:
    ax.hist(values.flatten().numpy(), bins=50, color=DEVICE, alpha=0.8)
    ax.axvline(float(nominal.mean()), color=BASELINE, ls="--", label="as drawn")
    title = name.replace("_", " ")
    ax.set(xlabel=title, ylabel="number", title=f"{title[0].upper()}{title[1:]} of this chip")
    ax.legend(frameon=False)
