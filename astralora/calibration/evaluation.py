"""Compare a law with measured pairs."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from ..devices import DeviceSpec, Identifiable
from .pairs import Pairs

__all__ = ["law_outputs", "predict", "residual_rms", "residual_rms_by_output", "unexplained", "unsaturated_mask"]

Constants = Mapping[str, Tensor]


def law_outputs(model: Identifiable, constants: Constants, pairs: Pairs, chosen: Tensor) -> Tensor:
    """Return the outputs of the law at some of the settings: (chosen, vectors, out_features)."""
    inputs = pairs.inputs[chosen]
    # All settings get the same vectors, scaled by one of a few strengths. Compute one strength at a time.
    strengths = inputs.flatten(1).abs().amax(dim=1)
    answers = inputs.new_empty(0)
    if bool((strengths == strengths[0]).all()):
        return model.law(constants, pairs.settings[chosen], inputs[0])
    parts, order = [], []
    for strength in strengths.unique():
        where = (strengths == strength).nonzero()[:, 0]
        parts.append(model.law(constants, pairs.settings[chosen[where]], inputs[where[0]]))
        order.append(where)
    answers = torch.cat(parts)
    return answers[torch.cat(order).argsort()]


def unsaturated_mask(measured: Tensor, predicted: Tensor, spec: DeviceSpec, noise: float) -> Tensor:
    """Return 1 where answers are within the detectors' range, and 0 where they are saturated.

    An answer is saturated if its prediction is within 3 standard deviations of the noise of the range's end. The
    measured value alone would exclude only one side of the noise. An answer that is measured more than 6 standard
    deviations from the end is never excluded, since the law is then wrong.
    """
    valid = torch.ones_like(measured)
    for rail in spec.rails:
        sign = 1.0 if rail > 0 else -1.0
        valid = valid * ~((sign * (rail - predicted) < 3 * noise) & (sign * (rail - measured) < 6 * noise))
    return valid


def predict(model: Identifiable, constants: Constants, pairs: Pairs) -> Tensor:
    """Return the outputs of the law for all pairs, (settings, vectors, out_features), without gradients."""
    with torch.no_grad():
        everything = torch.arange(len(pairs.settings))
        return torch.cat([law_outputs(model, constants, pairs, part) for part in everything.split(16)])


def residual_rms(pairs: Pairs, predicted: Tensor, spec: DeviceSpec, noise: float) -> float:
    """Return the root mean square residual of unsaturated answers, in output units."""
    valid = unsaturated_mask(pairs.outputs, predicted, spec, noise)
    return sqrt(float(((pairs.outputs - predicted).square() * valid).sum() / valid.sum().clamp_min(1)))


def residual_rms_by_output(pairs: Pairs, predicted: Tensor, spec: DeviceSpec, noise: float) -> Tensor:
    """Return the root mean square residual of each output's unsaturated answers, (out_features,)."""
    valid = unsaturated_mask(pairs.outputs, predicted, spec, noise)
    squares = ((pairs.outputs - predicted).square() * valid).sum(dim=(0, 1))
    return (squares / valid.sum(dim=(0, 1)).clamp_min(1)).sqrt()


def unexplained(
    model: Identifiable, constants: Constants, pairs: Pairs, spec: DeviceSpec, noise: float
) -> tuple[float, float]:
    """Return the share of the answers' power without noise that the law does not predict; and its standard error."""
    predicted = predict(model, constants, pairs)
    valid = unsaturated_mask(pairs.outputs, predicted, spec, noise)
    count = float(valid.sum().clamp_min(1))
    mean_square = float(((pairs.outputs - predicted).square() * valid).sum()) / count
    # Subtract the mean, so that a constant offset does not count as predicted power.
    centred = pairs.outputs - (pairs.outputs * valid).sum() / count
    power = max(float((centred.square() * valid).sum()) / count - noise**2, 1e-12)
    # The noise variance from few repeats is less certain than the residual.
    repeats = max(float(pairs.again.numel()), 1.0)
    error = sqrt(2 / count * mean_square**2 + 2 / repeats * noise**4) / power
    return max(mean_square - noise**2, 0.0) / power, error
