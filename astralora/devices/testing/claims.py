"""Checks of what a spec promises: ranges, levels, linearity, coupling, noise."""

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

# Share of a control's own effect that may show where the spec says that it has none: crosstalk.
_LEAK = 0.05
# Unevenness of neighbouring steps, as a share of their mean, beyond which codes are missing.
_UNEVEN = 0.5
# Codes whose steps are looked at.
_WINDOW = 16
# Codes that rounding could tell apart in float32.
_MOST_LEVELS = 1 << 16


def check_input_range(subject: Subject) -> None:
    """Inputs at both ends of their range are taken."""
    device = subject.running()
    bounds = device.spec.input_range
    if bounds is None:
        raise NotApplicable("the spec sets no input range")
    _ends_are_taken("inputs", bounds, lambda end: subject.query(device, torch.full((2, device.spec.in_features), end)))


def check_control_range(subject: Subject) -> None:
    """Controls at both ends of their range are taken."""
    device = subject.running()
    spec = device.spec
    if spec.control_range is None:
        raise NotApplicable("the spec sets no control range")

    def set_all(end: float) -> None:
        subject.program(device, torch.full((spec.num_controls,), end))
        subject.query(device, subject.inputs(spec, 2))

    _ends_are_taken("controls", spec.control_range, set_all)


def check_output_range(subject: Subject) -> None:
    """Outputs stay within their range."""
    device = subject.running()
    spec = device.spec
    if spec.output_range is None:
        raise NotApplicable("the spec sets no output range")
    low, high = spec.output_range
    slack = 1e-5 * (high - low)
    for inputs in _strong(subject, spec):
        answer = subject.query(device, inputs)
        least, most = float(answer.min()), float(answer.max())
        if least < low - slack or most > high + slack:
            fail(f"outputs reach from {least:.6g} to {most:.6g}, beyond the promised {low:.6g} to {high:.6g}")


def check_output_levels(subject: Subject) -> None:
    """Outputs are codes of the promised converter, and not of a coarser one."""
    device = subject.running()
    spec = device.spec
    if spec.output_levels is None or spec.output_range is None or spec.output_step is None:
        raise NotApplicable("the spec promises no output levels")
    if spec.output_levels > _MOST_LEVELS:
        raise NotApplicable("float32 cannot tell that many levels apart")
    answers = [subject.query(device, subject.inputs(spec, min(64, spec.max_batch or 64)))]
    for _ in range(3):
        subject.program(device, subject.controls(spec))
        answers.append(subject.query(device, subject.inputs(spec, min(64, spec.max_batch or 64))))
    codes = (torch.cat(answers).double() - spec.output_range[0]) / spec.output_step
    worst = float((codes - codes.round()).abs().max())
    if worst > 0.02:
        fail(f"an output lies {worst:.2f} of a step off the {spec.output_levels} promised levels")
    distinct = [int(code) for code in codes.round().unique()]
    common = reduce(gcd, (code - distinct[0] for code in distinct), 0)
    if common > 1 and len(distinct) >= 8:
        fail(f"only every {common}th of the {spec.output_levels} promised levels is ever seen")


def check_input_levels(subject: Subject) -> None:
    """Inputs are rounded to the promised codes: neither finer nor coarser."""
    device = subject.running()
    spec = device.spec
    if spec.input_levels is None or spec.input_range is None:
        raise NotApplicable("the spec promises no input levels")
    shape = (_rows(spec), spec.in_features)
    # Every vector a pattern of its own, moved as a whole along the codes.
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
    """Controls are rounded to the promised codes: neither finer nor coarser."""
    device = subject.running()
    spec = device.spec
    if spec.control_levels is None or spec.control_range is None:
        raise NotApplicable("the spec promises no control levels")
    inputs = subject.inputs(spec, _rows(spec))

    def answer(values: Tensor) -> Tensor:
        subject.program(device, values)
        return subject.average(device, inputs, 4 * subject.repeats(spec))

    pattern = torch.ones(spec.num_controls, dtype=torch.int64)
    _check_levels(subject, device, "control", spec.control_range, spec.control_levels, pattern, answer)


def check_linearity(subject: Subject) -> None:
    """The outputs are linear in the inputs, where the spec says so."""
    device = subject.running()
    spec = device.spec
    if not spec.linear:
        raise NotApplicable("the spec does not claim to be linear")
    low, high = spec.input_range or (-1.0, 1.0)
    first, second = subject.inputs(spec, 16), subject.inputs(spec, 16)
    # The strongest signals show best what is not linear: whole vectors at one end of the range.
    first[0], second[0], first[1], second[1] = high, low, low, high
    repeats = subject.repeats(spec)

    def answer(inputs: Tensor) -> Tensor:
        return subject.average(device, inputs, repeats)

    one, two = answer(first), answer(second)
    _linear(subject, spec, "half the sum of two inputs", answer((first + second) / 2), [one, two], repeats)
    if low <= 0 <= high:
        dark = answer(torch.zeros(1, spec.in_features))
        _linear(subject, spec, "darkness", dark, [], repeats)
        _linear(subject, spec, "half an input", answer(first / 2), [one], repeats)


def check_coupling(subject: Subject) -> None:
    """A control moves no more of the transfer matrix than the spec says."""
    device = subject.running()
    spec = device.spec
    if spec.coupling == "dense":
        raise NotApplicable("the spec says that a control may move anything")
    low, high = spec.control_range or (-1.0, 1.0)
    columns, by_input = _columns(subject, spec)
    base = subject.controls(spec)
    repeats = subject.repeats(spec)
    moved = False
    for _ in range(6):
        control = subject.integer(spec.num_controls)
        other = base.clone()
        other[control] = low + (float(base[control]) - low + (high - low) / 2) % (high - low)
        answers = []
        for controls in (base, other):
            subject.program(device, controls)
            answers.append(subject.average(device, by_input, repeats))
        change = (answers[1] - answers[0]).T  # (out_features, inputs that were lit)
        reach = _reach(spec, control)[:, columns] if columns is not None else _reach(spec, control).any(1)[:, None]
        reach = reach.expand_as(change)
        own = float(change[reach].abs().max()) if reach.any() else 0.0
        other_change = float(change[~reach].abs().max()) if (~reach).any() else 0.0
        magnitude = float(max(answer.abs().max() for answer in answers))
        noise = subject.scatter(spec, change.numel(), magnitude, repeats=repeats)
        moved = moved or own > noise
        if other_change > noise + _LEAK * own:
            fail(
                f"control {control} moves what the coupling {spec.coupling!r} says it cannot, by {other_change:.3g}, "
                f"where it moves its own part by {own:.3g} and noise explains {noise:.3g}"
            )


def check_noise(subject: Subject) -> None:
    """Answers to the same question scatter as the spec says."""
    device = subject.running()
    spec = device.spec
    inputs, repeats = subject.inputs(spec, 4), 64
    answers = torch.stack([subject.query(device, inputs).double() for _ in range(repeats)])
    rails = torch.tensor(spec.rails, dtype=torch.float64)
    free = ~(torch.isclose(answers[..., None], rails, rtol=1e-4, atol=0.0).any(-1).any(0))
    if not free.any():
        raise NotApplicable("every output saturates")
    # Differences of neighbours rather than deviations from a mean: slow drift is no noise.
    steps = (answers[1:] - answers[:-1])[:, free]
    seen = float(steps.square().mean()) / 2
    freedom = steps.numel() / 2
    rounding = (spec.output_step or 0.0) ** 2 / 4 + (2e-5 * float(answers.abs().max())) ** 2
    promised = spec.noise_std**2
    if seen > promised * (1 + 6 * sqrt(2 / freedom)) + rounding:
        fail(f"outputs scatter by {sqrt(seen):.4g}, where the spec promises {spec.noise_std:.4g}")
    if seen < promised / 25 and promised > rounding:
        fail(f"outputs scatter by {sqrt(seen):.4g} only, where the spec warns of {spec.noise_std:.4g}")


# -- what they share ---------------------------------------------------------------------------------


def _ends_are_taken(what: str, bounds: Range, act: Callable[[float], object]) -> None:
    for end in bounds:
        try:
            act(end)
        except DeviceError as error:
            fail(f"{what} of {end:.6g}, an end of the promised range, were refused: {error}")


def _strong(subject: Subject, spec: DeviceSpec) -> list[Tensor]:
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
    """Walk along neighbouring codes, and look whether every step counts, and nothing less than a step does.

    Args:
        subject: the device under test.
        device: it.
        what: is rounded.
        bounds: of its range.
        levels: that are promised.
        pattern: -1, 0 or 1 for every value: which way it goes along the walk.
        answer: the mean answer to values.
    """
    spec, repeats = device.spec, 4 * subject.repeats(device.spec)
    low, high = bounds
    step = (high - low) / (levels - 1)
    window = min(_WINDOW, (levels - 1) // 2)
    start = window + subject.integer(max(1, levels - 2 * window))

    def at(code: float) -> Tensor:
        # Everything sits on a code of its own, and moves by the same number of codes.
        return answer((low + step * (start + pattern * code)).clamp(low, high).float())

    walk = torch.stack([at(code) for code in range(window + 1)])
    inside = at(0.4), at(-0.4)
    magnitude = float(walk.abs().max())
    allowed = subject.scatter(spec, walk[0].numel(), magnitude, repeats=repeats)
    for found in inside:
        difference = float((found - walk[0]).abs().max())
        if difference > allowed:
            fail(
                f"{what}s moved by 0.4 of a step change the answer by {difference:.3g}, and noise explains "
                f"{allowed:.3g}: there are more than the {levels} promised levels"
            )
    # Along the whole walk's direction, neighbouring steps are nearly alike: where some are missing, codes are.
    whole = (walk[-1] - walk[0]).flatten()
    length = float(whole.norm())
    if window < 4 or not length:
        return
    steps = ((walk[1:] - walk[:-1]).flatten(1) @ whole) / length**2 * window
    kink = (steps[1:-1] - (steps[:-2] + steps[2:]) / 2).abs()
    # Four answers go into a kink, of which two with weight 3/2.
    noise = subject.scatter(spec, window, magnitude, (0.5, -1.5, 1.5, -0.5), repeats) * window / length
    noise *= 1.0 if spec.noise_std else sqrt(walk[0].numel())
    if float(kink.max()) > _UNEVEN + noise:
        fail(
            f"neighbouring {what} codes differ in effect by {float(kink.max()):.2f} of a step, where "
            f"{_UNEVEN + noise:.2f} may be: there are fewer than the {levels} promised levels"
        )


def _linear(subject: Subject, spec: DeviceSpec, what: str, found: Tensor, parts: list[Tensor], repeats: int) -> None:
    due = sum((part / 2 for part in parts), torch.zeros_like(found))
    # Where a detector saturates, nothing can be linear.
    rails = torch.tensor(spec.rails, dtype=torch.float64)
    reach = 4 * spec.noise_std + (spec.output_step or 0.0)
    near = [(each[..., None] - rails).abs().le(reach + 1e-6 * rails.abs()).any(-1) for each in [found, *parts]]
    free = ~torch.stack(near).any(0)
    magnitude = max(float(each.abs().max()) for each in [found, *parts])
    allowed = subject.scatter(spec, found.numel(), magnitude, (1.0, *([-0.5] * len(parts))), repeats)
    if spec.input_step is not None and spec.input_range is not None:
        # Each input is rounded, in each of the answers; a matrix of such outputs has rows about this long.
        low, high = spec.input_range
        rows = magnitude / (max(abs(low), abs(high)) / sqrt(3))
        allowed += 7 * rows * spec.input_step / sqrt(12) * sqrt(1 + len(parts) / 4)
    difference = (found - due).abs()[free]
    if difference.numel() and float(difference.max()) > allowed:
        fail(
            f"{what} is answered {float(difference.max()):.4g} off what a linear device would, "
            f"where {allowed:.4g} may be"
        )


def _columns(subject: Subject, spec: DeviceSpec) -> tuple[Tensor | None, Tensor]:
    """Inputs that light one column each, and which; or all at once, where none can be left dark."""
    low, high = spec.input_range or (-1.0, 1.0)
    if not low <= 0 <= high:
        return None, subject.inputs(spec, 1)
    bright = high if abs(high) >= abs(low) else low
    chosen = torch.randperm(spec.in_features, generator=subject.generator)[:32]
    return chosen, bright * torch.eye(spec.in_features)[chosen]


def _reach(spec: DeviceSpec, control: int) -> Tensor:
    """What one control may move: (out_features, in_features) of bool."""
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
