"""Measure the noise of the outputs and its spectrum."""

from __future__ import annotations

from math import exp, log2, sqrt

import numpy as np
import torch
from torch import Tensor

from .findings import Finding
from .measurement import Cost, Measurement

__all__ = ["Noise"]

# Right after a program, chips decay by more than their noise. The measurement therefore starts after some queries and
# a wait, as a multiple of the time that these queries took.
_FIRST = 4
_WAIT = 100.0


class Noise(Measurement):
    """Measure the noise of every output and its spectrum, by queries of a few vectors many times."""

    name = "noise"
    priority = 0
    _queries = 64

    def cost(self) -> Cost:
        """Count one program, and at least 2 vectors, 64 times each."""
        return Cost(1, self._queries * self._each)

    def run(self) -> list[Finding]:
        """Return the noise of one query, its spectrum, and the effective bits of the outputs."""
        vectors = self.context.draw_vectors(self._each)
        self.context.session.program(self.context.base)
        start = self.context.clock.clock_seconds
        for _ in range(_FIRST):
            self.context.query(vectors)
        self.context.clock.wait(_WAIT * (self.context.clock.clock_seconds - start))
        start = self.context.clock.clock_seconds
        answers = torch.stack([self.context.query(vectors) for _ in range(self._queries - _FIRST)]).double()
        elapsed = self.context.clock.clock_seconds - start
        self.context.vector_seconds = elapsed / answers.shape[:2].numel()
        within = answers - answers.mean(dim=0)
        variances, noise, error = self.context.estimate_noise(answers)
        spec, outputs = self.context.spec, len(variances)
        # The bounds are a factor: far below one step, only the few answers that changed determine the noise.
        factor = exp(3 * min(error / noise, 2.0)) if noise > 0 else 1.0
        low, high = noise / factor, noise * factor if noise > 0 else 3 * error
        found = [
            Finding(
                name="noise_std",
                measurement=self.name,
                value=noise,
                low=low,
                high=high,
                unit="output units",
                promised=spec.noise_std,
                agrees=low <= spec.noise_std * 1.05 and spec.noise_std <= high * 1.05 + 1e-12,
                sentence=f"One output of one query has a noise of {noise:.3g}, rounding excluded.",
                data={
                    "outputs": list(range(outputs)),
                    "std": variances.sqrt().tolist(),
                    "samples": within.flatten()[:20000].tolist(),
                },
            ),
            self._spectrum(answers, elapsed),
        ]
        if spec.output_range is not None:
            span = spec.output_range[1] - spec.output_range[0]
            bits = log2(span / (sqrt(12) * self.context.noise_std))
            found.append(
                Finding(
                    name="output_enob",
                    measurement=self.name,
                    value=bits,
                    low=log2(span / (sqrt(12) * max(self.context.noise_std + 3 * error, 1e-300))),
                    high=log2(span / (sqrt(12) * max(self.context.noise_std - 3 * error, self.context.noise_std / 2))),
                    unit="bits",
                    sentence=f"The outputs have {bits:.1f} effective bits, noise and rounding included.",
                )
            )
        return found

    def _spectrum(self, answers: Tensor, elapsed: float) -> Finding:
        """Fit white and 1/f noise to the power spectrum, and return the corner frequency."""
        from scipy import signal  # takes half a second to import

        series = (answers - answers.mean(dim=0)).flatten(0, 1).numpy()
        rate = len(series) / elapsed if elapsed > 0 else 1.0
        frequencies, power = signal.welch(series, fs=rate, nperseg=max(8, len(series) // 8), axis=0)
        # The small term avoids a division by 0 on a chip without noise.
        frequencies, power = frequencies[1:-1], power[1:-1].mean(axis=1) + np.finfo(float).tiny ** 0.5
        # Fit white plus 1/f noise by least squares of relative errors; neither may be negative.
        terms = np.stack([np.ones_like(frequencies), 1 / frequencies], axis=1) / power[:, None]
        white, flicker = np.maximum(np.linalg.lstsq(terms, np.ones_like(power), rcond=None)[0], 0.0)
        segments = 15 * answers.shape[2]
        # An average of this many periodograms scatters by the inverse root of their number.
        visible = flicker / frequencies[0] > 4 * white / sqrt(segments)
        corner = float(flicker / white) if visible and white > 0 else 0.0
        kind = f"1/f noise up to {corner:.3g} Hz, white above" if corner else "white"
        return Finding(
            name="flicker_corner",
            measurement=self.name,
            value=corner,
            unit="Hz",
            sentence=f"The noise is {kind}, from {frequencies[0]:.3g} to {frequencies[-1]:.3g} Hz.",
            data={"frequency": frequencies.tolist(), "power": power.tolist(), "white": float(white), "corner": corner},
        )

    @property
    def _each(self) -> int:
        return max(2, round(16 * self.effort.repeats))
