"""What a law says of measured pairs, and what it leaves of them."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

import torch
from torch import Tensor

from ..devices import DeviceSpec, Identifiable
from .pairs import Pairs

__all__ = ["answers_of", "foresee", "rms_by_output", "rms_left", "unexplained", "within_range"]

Constants = Mapping[str, Tensor]


def answers_of(model: Identifiable, constants: Constants, pairs: Pairs, chosen: Tensor) -> Tensor:
    """What the law says of some of the settings: (chosen, vectors, out_features)."""
    inputs = pairs.inputs[chosen]
    # All settings are asked for the same vectors, at one of a few strengths: those of one strength at a time.
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


def within_range(measured: Tensor, foreseen: Tensor, spec: DeviceSpec, noise: float) -> Tensor:
    """Where answers are clear of the ends of the detectors' range: 1 there, else 0.

    What is foreseen decides: leaving out what was measured near an end would leave out one side of the noise. Only an
    answer far from an end that was foreseen there counts, since the law is wrong about it.
    """
    valid = torch.ones_like(measured)
    for rail in spec.rails:
        sign = 1.0 if rail > 0 else -1.0
        valid = valid * ~((sign * (rail - foreseen) < 3 * noise) & (sign * (rail - measured) < 6 * noise))
    return valid


def foresee(model: Identifiable, constants: Constants, pairs: Pairs) -> Tensor:
    """What the law says of all of them, (settings, vectors, out_features), without gradients."""
    with torch.no_grad():
        everything = torch.arange(len(pairs.settings))
        return torch.cat([answers_of(model, constants, pairs, part) for part in everything.split(16)])


def rms_left(pairs: Pairs, foreseen: Tensor, spec: DeviceSpec, noise: float) -> float:
    """Root mean square of what is left of answers within the detectors' range, in output units."""
    valid = within_range(pairs.outputs, foreseen, spec, noise)
    return sqrt(float(((pairs.outputs - foreseen).square() * valid).sum() / valid.sum().clamp_min(1)))


def rms_by_output(pairs: Pairs, foreseen: Tensor, spec: DeviceSpec, noise: float) -> Tensor:
    """The same of each output, (out_features,)."""
    valid = within_range(pairs.outputs, foreseen, spec, noise)
    squares = ((pairs.outputs - foreseen).square() * valid).sum(dim=(0, 1))
    return (squares / valid.sum(dim=(0, 1)).clamp_min(1)).sqrt()


def unexplained(
    model: Identifiable, constants: Constants, pairs: Pairs, spec: DeviceSpec, noise: float
) -> tuple[float, float]:
    """Share of the answers' power, noise aside, that is not foreseen; and its standard error."""
    foreseen = foresee(model, constants, pairs)
    valid = within_range(pairs.outputs, foreseen, spec, noise)
    count = float(valid.sum().clamp_min(1))
    left = float(((pairs.outputs - foreseen).square() * valid).sum()) / count
    # About their mean: a constant offset is nothing to be proud of having foreseen.
    about = pairs.outputs - (pairs.outputs * valid).sum() / count
    power = max(float((about.square() * valid).sum()) / count - noise**2, 1e-12)
    # Of noise known from few repeats, the uncertainty of its own variance outweighs that of the answers'.
    known = max(float(pairs.again.numel()), 1.0)
    error = sqrt(2 / count * left**2 + 2 / known * noise**4) / power
    return max(left - noise**2, 0.0) / power, error
