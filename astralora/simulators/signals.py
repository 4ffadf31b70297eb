"""Pass vectors through a simulated chip, from the input converters to the output converters."""

from __future__ import annotations

import torch
from torch import Tensor

from ..devices import DeviceSpec, Range
from .chip import Chip
from .converters import quantize
from .impairments import Impairments
from .noise import standard_normal

__all__ = ["SignalPath"]


class SignalPath:
    """Pass vectors through converters, modulators, the chip's physics and detectors.

    The stages in their order are: input DAC, input noise, modulators, physics with weight noise, detectors, output
    noise, saturation, output ADC. Each stage accepts any leading axes, so the same code handles one or many settings.

    Args:
        chip: simulated chip.
        impairments: strengths of the noise.
        spec: ranges and codes of the converters.
        noise: random stream of the noise; shared with the state of the chip.
        noise_by_output: standard deviation of each output's noise, (out_features,), in output units, in place of
            ``output_noise_fraction``.

    Raises:
        ValueError: ``noise_by_output`` has the wrong shape.
    """

    def __init__(
        self,
        chip: Chip,
        impairments: Impairments,
        spec: DeviceSpec,
        noise: torch.Generator,
        noise_by_output: Tensor | None = None,
    ) -> None:
        if noise_by_output is not None and tuple(noise_by_output.shape) != (spec.out_features,):
            raise ValueError(
                f"noise_by_output must have shape ({spec.out_features},), but has {tuple(noise_by_output.shape)}"
            )
        self._chip = chip
        self._impairments = impairments
        self._spec = spec
        self._noise = noise
        self._noise_by_output = None if noise_by_output is None else noise_by_output.to(chip.law.device)
        self._newest_signals: Tensor | None = None  # None after a query of the reverse port
        self._newest_outputs: Tensor | None = None

    def answer(self, inputs: Tensor, response: Tensor) -> Tensor:
        """Pass vectors forwards through the chip: (batch, in_features) -> (..., batch, out_features).

        Args:
            inputs: legal inputs, in input units.
            response: result of `Chip.response` for one or many settings; its leading axes are those of the outputs.
        """
        signals = self._newest_signals = self._send(inputs)
        outputs = self._chip.transmit(self._modulate(signals), self._add_weight_noise(response))
        return self._receive(self._chip.detect(outputs), self._noise_by_output)

    def answer_backwards(self, outputs: Tensor, matrix: Tensor) -> Tensor:
        """Pass vectors backwards through the chip: (batch, out_features) -> (batch, in_features).

        The reverse port has converters, noise and saturation of the same kind as the forward port. It has separate
        modulators and detectors, which are all equal, so gains, offsets, dead outputs and ``noise_by_output`` of the
        forward port have no effect.

        Args:
            outputs: vectors within the input range, in input units.
            matrix: transfer matrix, (out_features, in_features).
        """
        self._newest_signals = None
        passed = self._send(outputs) @ self._add_weight_noise(matrix)
        return self._receive(self._impairments.transmission * passed)

    @property
    def clipped(self) -> float:
        """Return the share of the inputs of the newest query that are outside the range of the modulators."""
        if self._newest_signals is None or not self._chip.uneven_modulators:
            return 0.0
        low, high = self._modulator_range
        wanted = self._chip.modulate(self._newest_signals)
        return float(((wanted < low) | (wanted > high)).float().mean())

    @property
    def saturated(self) -> float:
        """Return the share of the outputs of the newest query that are at an end of the detectors' range."""
        if self._newest_outputs is None or self._spec.output_range is None:
            return 0.0
        margin = (self._spec.output_step or 0.0) / 2
        low, high = self._spec.output_range
        outputs = self._newest_outputs
        return float(((outputs <= low + margin) | (outputs >= high - margin)).float().mean())

    # -- stages -----------------------------------------------------------------------------

    @property
    def _modulator_range(self) -> Range:
        bounds = self._spec.input_range
        assert bounds is not None
        return bounds

    def _send(self, inputs: Tensor) -> Tensor:
        """Quantize inputs and add input noise."""
        law = self._impairments
        signals = inputs.detach().to(self._chip.law.device)
        if law.input_levels is not None:
            signals = quantize(signals, self._modulator_range, law.input_levels)
        if law.input_noise_std:
            signals = signals + law.input_noise_std * standard_normal(signals, self._noise)
        return signals

    def _modulate(self, signals: Tensor) -> Tensor:
        """Apply the modulators' gains and offsets, and clip at the ends of their range."""
        if not self._chip.uneven_modulators:
            return signals
        return self._chip.modulate(signals).clamp_(*self._modulator_range)

    def _add_weight_noise(self, response: Tensor) -> Tensor:
        """Add noise to each entry of transfer matrices, (..., out_features, in_features)."""
        std = self._impairments.weight_noise_std
        return torch.add(response, standard_normal(response, self._noise), alpha=std) if std else response

    def _receive(self, outputs: Tensor, noise_by_output: Tensor | None = None) -> Tensor:
        """Add output noise, saturate and quantize."""
        outputs = self._add_output_noise(outputs, noise_by_output)
        bounds = self._spec.output_range
        if bounds is not None:
            outputs = quantize(outputs, bounds, self._impairments.output_levels)
        self._newest_outputs = outputs
        return outputs

    def _add_output_noise(self, clean: Tensor, noise_by_output: Tensor | None) -> Tensor:
        """Add noise of fixed strength, noise relative to the magnitude, and shot noise."""
        law, full_scale = self._impairments, self._chip.law.full_scale
        outputs = clean
        if noise_by_output is not None:
            strength = noise_by_output.to(outputs.dtype)
            outputs = torch.addcmul(outputs, strength, standard_normal(outputs, self._noise))
        elif law.output_noise_fraction:
            noise = standard_normal(outputs, self._noise)
            outputs = torch.add(outputs, noise, alpha=law.output_noise_fraction * full_scale, out=noise)
        if law.output_noise_relative:
            noise = standard_normal(outputs, self._noise)
            outputs = torch.addcmul(outputs, clean, noise, value=law.output_noise_relative)
        if law.shot_noise_fraction:
            strength = (clean.abs() * full_scale).sqrt()
            noise = standard_normal(outputs, self._noise)
            outputs = torch.addcmul(outputs, strength, noise, value=law.shot_noise_fraction)
        return outputs
