"""Check the claims of a spec: ranges, levels, linearity, coupling."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import gcd, sqrt
from typing import Literal

import torch
from torch import Tensor

from ..device import Device
from ..errors import DeviceError
from ..reach import Stripe
from ..spec import DeviceSpec, Range
from .subject import NotApplicable, Subject, fail

__all__: list[str] = []

# Largest allowed effect outside the declared coupling (crosstalk), as a share of the effect inside.
_CROSSTALK = 0.05
# Largest difference of neighbouring steps, as a share of their mean; beyond it, codes are missing.
_UNEVEN = 0.5
# Number of neighbouring codes whose steps are measured.
_WINDOW = 16
# Largest number of levels that float32 can resolve.
_MOST_LEVELS = 1 << 16


def check_input_range(subject: Subject) -> None:
    """Check that the device accepts inputs at both ends of their range."""
    device = subject.running()
    bounds = device.spec.input_range
    if bounds is None:
        raise NotApplicable("the spec claims no input range")
    _check_ends("inputs", bounds, lambda end: subject.query(device, torch.full((2, device.spec.in_features), end)))


def check_control_range(subject: Subject) -> None:
    """Check that the device accepts controls at both ends of their range."""
    device = subject.running()
    spec = device.spec
    if spec.control_range is None:
        raise NotApplicable("the spec claims no control range")

    def set_all(end: float) -> None:
        subject.program(device, torch.full((spec.num_controls,), end))
        subject.query(device, subject.inputs(spec, 2))

    _check_ends("controls", spec.control_range, set_all)


def check_output_range(subject: Subject) -> None:
    """Check that outputs stay within their range."""
    device = subject.running()
    spec = device.spec
    if spec.output_range is None:
        raise NotApplicable("the spec claims no output range")
    low, high = spec.output_range
    slack = 1e-5 * (high - low)
    for inputs in _strong_inputs(subject, spec):
        answer = subject.query(device, inputs)
        least, most = float(answer.min()), float(answer.max())
        if least < low - slack or most > high + slack:
            fail(f"outputs reach from {least:.6g} to {most:.6g}, beyond the claimed {low:.6g} to {high:.6g}")


def check_output_levels(subject: Subject) -> None:
    """Check that outputs are codes of the claimed converter, and not of a coarser one."""
    device = subject.running()
    spec = device.spec
    if spec.output_levels is None or spec.output_range is None or spec.output_step is None:
        raise NotApplicable("the spec claims no output levels")
    if spec.output_levels > _MOST_LEVELS:
        raise NotApplicable("float32 cannot resolve that many levels")
    answers = [subject.query(device, subject.inputs(spec, min(64, spec.max_batch or 64)))]
    for _ in range(3):
        subject.program(device, subject.controls(spec))
        answers.append(subject.query(device, subject.inputs(spec, min(64, spec.max_batch or 64))))
    codes = (torch.cat(answers).double() - spec.output_range[0]) / spec.output_step
    worst = float((codes - codes.round()).abs().max())
    if worst > 0.02:
        fail(f"an output is {worst:.2f} of a step away from the nearest of the {spec.output_levels} claimed levels")
    distinct = [int(code) for code in codes.round().unique()]
    common = reduce(gcd, (code - distinct[0] for code in distinct), 0)
    if common > 1 and len(distinct) >= 8:
        fail(f"the outputs use only every {common}th of the {spec.output_levels} claimed levels")


def check_input_levels(subject: Subject) -> None:
    """Check that inputs are rounded to exactly the claimed codes, not to finer or coarser ones."""
    device = subject.running()
    spec = device.spec
    if spec.input_levels is None or spec.input_range is None:
        raise NotApplicable("the spec claims no input levels")
    shape = (_rows(spec), spec.in_features)
    # Each vector has a different pattern; all its values move along the codes together.
    pattern = torch.randint(-1, 2, shape, generator=subject.generator)
    _check_levels(
        subject,
        device,
        "input",
        spec.input_range,
        spec.input_levels,
        pattern,
        lambda values: subject.average(device, values, 4 * subject.repeats(spec)),
    )


def check_control_levels(subject: Subject) -> None:
    """Check that controls are rounded to exactly the claimed codes, not to finer or coarser ones."""
    device = subject.running()
    spec = device.spec
    if spec.control_levels is None or spec.control_range is None:
        raise NotApplicable("the spec claims no control levels")
    inputs = subject.inputs(spec, _rows(spec))

    def answer(values: Tensor) -> Tensor:
        subject.program(device, values)
        return subject.average(device, inputs, 4 * subject.repeats(spec))

    pattern = torch.ones(spec.num_controls, dtype=torch.int64)
    _check_levels(subject, device, "control", spec.control_range, spec.control_levels, pattern, answer)


def check_linearity(subject: Subject) -> None:
    """Check, if the spec claims it, that the outputs are linear in the inputs."""
    device = subject.running()
    spec = device.spec
    if not spec.linear:
        raise NotApplicable("the spec does not claim to be linear")
    low, high = spec.input_range or (-1.0, 1.0)
    first, second = subject.inputs(spec, 16), subject.inputs(spec, 16)
    # Strong signals show nonlinearity best, so some vectors are at one end of the range in all entries.
    first[0], second[0], first[1], second[1] = high, low, low, high
    repeats = subject.repeats(spec)

    def answer(inputs: Tensor) -> Tensor:
        return subject.average(device, inputs, repeats)

    one, two = answer(first), answer(second)
    _check_linear(subject, spec, "half the sum of two inputs", answer((first + second) / 2), [one, two], repeats)
    if low <= 0 <= high:
        zero = answer(torch.zeros(1, spec.in_features))
        _check_linear(subject, spec, "an input of zero", zero, [], repeats)
        _check_linear(subject, spec, "half an input", answer(first / 2), [one], repeats)


def check_coupling(subject: Subject) -> None:
    """Check that a control changes only the part of the transfer matrix that the coupling of the spec allows."""
    device = subject.running()
    spec = device.spec
    if spec.coupling == "dense":
        raise NotApplicable("the spec allows a control to change every entry")
    low, high = spec.control_range or (-1.0, 1.0)
    columns, inputs = _columns(subject, spec)
    base = subject.controls(spec)
    repeats = subject.repeats(spec)
    for _ in range(6):
        control = subject.integer(spec.num_controls)
        other = base.clone()
        other[control] = low + (float(base[control]) - low + (high - low) / 2) % (high - low)
        answers = []
        for controls in (base, other):
            subject.program(device, controls)
            answers.append(subject.average(device, inputs, repeats))
        change = (answers[1] - answers[0]).T  # (out_features, queried inputs)
        reach = _reach(spec, control)[:, columns] if columns is not None else _reach(spec, control).any(1)[:, None]
        reach = reach.expand_as(change)
        own = float(change[reach].abs().max()) if reach.any() else 0.0
        other_change = float(change[~reach].abs().max()) if (~reach).any() else 0.0
        magnitude = float(max(answer.abs().max() for answer in answers))
        noise = subject.scatter(spec, change.numel(), magnitude, repeats=repeats)
        if other_change > noise + _CROSSTALK * own:
            fail(
                f"control {control} changes the matrix outside its coupling {spec.coupling!r} by {other_change:.3g}; "
                f"it changes the allowed part by {own:.3g}, and noise explains {noise:.3g}"
            )


# -- helpers -----------------------------------------------------------------------------------------


def _check_ends(what: str, bounds: Range, act: Callable[[float], object]) -> None:
    for end in bounds:
        try:
            act(end)
        except DeviceError as error:
            fail(f"{what} of {end:.6g}, an end of the claimed range, were refused: {error}")


def _strong_inputs(subject: Subject, spec: DeviceSpec) -> list[Tensor]:
    low, high = spec.input_range or (-1.0, 1.0)
    signs = torch.randint(0, 2, (8, spec.in_features), generator=subject.generator)
    return [torch.full((1, spec.in_features), low), torch.full((1, spec.in_features), high), low + (high - low) * signs]


def _rows(spec: DeviceSpec) -> int:
    return min(16, spec.max_batch or 16)


def _check_levels(
    subject: Subject,
    device: Device,
    what: Literal["input", "control"],
    bounds: Range,
    levels: int,
    pattern: Tensor,
    answer: Callable[[Tensor], Tensor],
) -> None:
    """Check that a step to the next code changes the answer, and that less than a step does not.

    Args:
        subject: subject that drives the device.
        device: device under test.
        what: name of the rounded quantity.
        bounds: ends of its range.
        levels: number of claimed levels.
        pattern: direction in which each value moves along the codes: -1, 0 or 1.
        answer: function that returns the mean answer to given values.
    """
    spec, repeats = device.spec, 4 * subject.repeats(device.spec)
    low, high = bounds
    step = (high - low) / (levels - 1)
    window = min(_WINDOW, (levels - 1) // 2)
    start = window + subject.integer(max(1, levels - 2 * window))

    def at(code: float) -> Tensor:
        # All values start at the same code, and move by the same number of codes, or not at all.
        return answer((low + step * (start + pattern * code)).clamp(low, high).float())

    answers = torch.stack([at(code) for code in range(window + 1)])
    within_a_step = at(0.4), at(-0.4)
    magnitude = float(answers.abs().max())
    allowed = subject.scatter(spec, answers[0].numel(), magnitude, repeats=repeats)
    for found in within_a_step:
        difference = float((found - answers[0]).abs().max())
        if difference > allowed:
            fail(
                f"moving the {what}s by 0.4 of a step changes the answer by {difference:.3g}, but noise explains only "
                f"{allowed:.3g}: there are more than the {levels} claimed levels"
            )
    # Projected on the change from the first code to the last, neighbouring steps are nearly equal if all codes exist.
    whole = (answers[-1] - answers[0]).flatten()
    length = float(whole.norm())
    if window < 4 or not length:
        return
    steps = ((answers[1:] - answers[:-1]).flatten(1) @ whole) / length**2 * window
    kink = (steps[1:-1] - (steps[:-2] + steps[2:]) / 2).abs()
    # A kink is a sum of four answers, two of them with weight 3/2.
    noise = subject.scatter(spec, window, magnitude, (0.5, -1.5, 1.5, -0.5), repeats) * window / length
    noise *= 1.0 if subject.noise_std(spec) else sqrt(answers[0].numel())
    if float(kink.max()) > _UNEVEN + noise:
        fail(
            f"the effects of neighbouring {what} codes differ by {float(kink.max()):.2f} of a step, but only "
            f"{_UNEVEN + noise:.2f} is allowed: there are fewer than the {levels} claimed levels"
        )


def _check_linear(
    subject: Subject, spec: DeviceSpec, what: str, found: Tensor, parts: list[Tensor], repeats: int
) -> None:
    expected = sum((part / 2 for part in parts), torch.zeros_like(found))
    # The response of a saturated detector is not linear.
    rails = torch.tensor(spec.rails, dtype=torch.float64)
    reach = 4 * subject.noise_std(spec) + (spec.output_step or 0.0)
    near = [(each[..., None] - rails).abs().le(reach + 1e-6 * rails.abs()).any(-1) for each in [found, *parts]]
    unsaturated = ~torch.stack(near).any(0)
    magnitude = max(float(each.abs().max()) for each in [found, *parts])
    allowed = subject.scatter(spec, found.numel(), magnitude, (1.0, *([-0.5] * len(parts))), repeats)
    if spec.input_step is not None and spec.input_range is not None:
        # Each answer contains the rounding of its inputs, multiplied by matrix rows of about this norm.
        low, high = spec.input_range
        rows = magnitude / (max(abs(low), abs(high)) / sqrt(3))
        allowed += 7 * rows * spec.input_step / sqrt(12) * sqrt(1 + len(parts) / 4)
    difference = (found - expected).abs()[unsaturated]
    if difference.numel() and float(difference.max()) > allowed:
        fail(
            f"the answer to {what} differs by {float(difference.max()):.4g} from the answer of a linear device, "
            f"but only {allowed:.4g} is allowed"
        )


def _columns(subject: Subject, spec: DeviceSpec) -> tuple[Tensor | None, Tensor]:
    """Return the columns to test and one input vector for each; None and one full vector if the range excludes zero."""
    low, high = spec.input_range or (-1.0, 1.0)
    if not low <= 0 <= high:
        return None, subject.inputs(spec, 1)
    bright = high if abs(high) >= abs(low) else low
    chosen = torch.randperm(spec.in_features, generator=subject.generator)[:32]
    return chosen, bright * torch.eye(spec.in_features)[chosen]


def _reach(spec: DeviceSpec, control: int) -> Tensor:
    """Return a mask of the entries that one control may change, (out_features, in_features)."""
    mask = torch.zeros(spec.out_features, spec.in_features, dtype=torch.bool)
    if spec.coupling == "elementwise":
        mask.view(-1)[control] = True
    elif spec.coupling == "output":
        mask[control // (spec.num_controls // spec.out_features)] = True
    for patch in spec.reach or ():
        if control < patch.controls:
            outputs, inputs = _indices(patch.outputs), _indices(patch.inputs)
            if patch.split == "outputs":
                outputs = _share(outputs, control, patch.controls)
            elif patch.split == "inputs":
                inputs = _share(inputs, control, patch.controls)
            mask[outputs[:, None], inputs] = True
            break
        control -= patch.controls
    return mask


def _indices(stripe: Stripe) -> Tensor:
    return torch.tensor(range(*stripe), dtype=torch.int64)


def _share(indices: Tensor, number: int, count: int) -> Tensor:
    size = len(indices) // count
    return indices[number * size : (number + 1) * size]
