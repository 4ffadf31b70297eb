"""Find controls with which a device computes a given matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..devices import DeviceSpec, Purpose, Session
from ..probing.probes import TransferProbe, orthogonal_probes

__all__ = ["MatrixFit", "fit_matrix"]

Product = Callable[[Tensor], Tensor]

# Number of settings of the sweep that measures the curve of each element, and number of corrections after it.
_SETTINGS = 33
_CORRECTIONS = 4
# Number of times that each vector is sent; vectors cost very little compared with programs.
_REPEATS = 4
# Number of gains to try, and the largest of them, relative to the smallest gain that makes the largest weight possible.
_GAINS = 24
_WIDEST_GAIN = 8.0
# Largest product of elements and settings in one search through the curves: 64 MiB in float32.
_CHUNK = 1 << 24
# Largest first step of a descent, as a share of the control range.
_STRIDE = 1 / 64


@dataclass(frozen=True, slots=True)
class MatrixFit:
    """Hold the controls and the gain for which gain A(controls) is nearest to a matrix W.

    Attributes:
        controls: fitted controls, (num_controls,).
        gain: factor of A(controls).
        residual: measured relative error |gain A - W| / |W|.
    """

    controls: Tensor
    gain: float
    residual: float


def fit_matrix(
    session: Session,
    weight: Tensor,
    controls: nn.Parameter,
    product: Product,
    *,
    gain: bool = True,
    steps: int = 100,
) -> MatrixFit:
    """Find controls w and a gain such that gain A(w) is nearest to a matrix W in the Frobenius norm.

    If every control sets one entry, all controls are swept through their range together, which measures the curve of
    every element. Then each element is set to its weight, and corrected by further measurements. This takes 38 programs
    for any size. On other devices, gradient descent minimises |gain A(w) - W|^2 / 2; each step costs the same as a
    training step.

    Args:
        session: session of a linear device.
        weight: W, (out_features, in_features).
        controls: first controls of the descent, (num_controls,); their values may change.
        product: function that computes X A(w)^T on the device at these controls, (batch, in_features) ->
            (batch, out_features), differentiable with respect to the controls.
        gain: whether to choose a gain; otherwise the gain is 1.
        steps: number of descent steps.

    Raises:
        ConfigurationError: the device is not linear, or W has another shape.
    """
    spec = session.spec
    shape = (spec.out_features, spec.in_features)
    if not spec.linear:
        raise ConfigurationError(f"a fit to a matrix needs a linear device, but {spec.name!r} is not linear")
    if weight.shape != shape:
        raise ConfigurationError(
            f"{spec.name!r} has a transfer matrix of shape {shape}; the matrix to fit must have this shape, but has "
            f"{tuple(weight.shape)}"
        )
    weight = weight.detach().to(controls)
    with session.transaction():
        if spec.coupling == "elementwise" and spec.control_range is not None:
            with torch.no_grad(), session.purpose(Purpose.FIT):
                return _sweep(session, weight, controls.detach(), gain)
        return _descend(session, weight, controls, product, gain, steps)


def _measure(session: Session, probe: TransferProbe, controls: Tensor) -> Tensor:
    session.program(controls)
    return probe.matrix(probe.ask(session))


def _best_gain(matrix: Tensor, weight: Tensor, gain: bool) -> float:
    if not gain:
        return 1.0
    return float((matrix * weight).sum() / matrix.square().sum().clamp_min(1e-30)) or 1.0


def _residual(matrix: Tensor, weight: Tensor, gain: float) -> float:
    return float((gain * matrix - weight).norm() / weight.norm().clamp_min(1e-30))


def _sweep(session: Session, weight: Tensor, controls: Tensor, gain: bool) -> MatrixFit:
    spec = session.spec
    assert spec.control_range is not None
    low, high = spec.control_range
    probe = TransferProbe(spec, controls.dtype, controls.device, repeats=_REPEATS)
    session.afford("fit", programs=_SETTINGS + 1 + _CORRECTIONS, vectors=(_SETTINGS + 1 + _CORRECTIONS) * probe.vectors)
    levels = _round_to_levels(spec, torch.linspace(low, high, _SETTINGS).to(controls))
    curves = torch.stack([_measure(session, probe, level.expand_as(controls)) for level in levels]).flatten(1)
    targets = weight.flatten()
    scale = float(targets.abs().max() / curves.abs().max().clamp_min(1e-30)) or 1.0
    gains = [scale * _WIDEST_GAIN ** (place / (_GAINS - 1)) for place in range(_GAINS)] if gain else [1.0]
    # A smaller gain, which limits the largest weights, may be better for the other weights.
    gains += [scale / 2, scale / 4] if gain else []

    def predicted(factor: float) -> tuple[float, Tensor, Tensor]:
        settings, entries, slopes = _invert(spec, curves, levels, targets / factor)
        return float((factor * entries - targets).square().sum()), settings, slopes

    chosen = min(gains, key=lambda factor: predicted(factor)[0])
    _, settings, slopes = predicted(chosen)
    best: MatrixFit | None = None
    for turn in range(_CORRECTIONS + 1):
        matrix = _measure(session, probe, settings)
        factor = _best_gain(matrix, weight, gain)
        residual = _residual(matrix, weight, factor)
        if best is None or residual < best.residual:
            best = MatrixFit(settings.clone(), factor, residual)
        if turn == _CORRECTIONS:
            break
        # A Newton step for every element whose curve is steep enough.
        error = targets / chosen - matrix.flatten()
        steep = slopes.abs() > 0.1 * slopes.abs().mean()
        move = torch.where(steep, error / torch.where(steep, slopes, 1.0), 0.0)
        settings = (settings + move.clamp(-_STRIDE * (high - low), _STRIDE * (high - low))).clamp(low, high)
    assert best is not None
    return best


def _invert(spec: DeviceSpec, curves: Tensor, levels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each element, the setting with the entry nearest to its target, this entry, and the slope there."""
    settings, entries, slopes = torch.empty_like(targets), torch.empty_like(targets), torch.empty_like(targets)
    widths = levels.diff()
    size = max(1, _CHUNK // len(levels))
    for start in range(0, len(targets), size):
        part = slice(start, start + size)
        left, rise = curves[:-1, part], curves[:, part].diff(dim=0)
        flat = rise.abs() < 1e-12
        share = ((targets[part] - left) / torch.where(flat, 1.0, rise)).clamp(0, 1)
        segment = (left + share * rise - targets[part]).abs().argmin(dim=0, keepdim=True)
        share = share.gather(0, segment)[0]
        segment = segment[0]
        setting = _round_to_levels(spec, levels[segment] + share * widths[segment])
        slope = rise.gather(0, segment.unsqueeze(0))[0] / widths[segment]
        settings[part], slopes[part] = setting, slope
        entries[part] = left.gather(0, segment.unsqueeze(0))[0] + slope * (setting - levels[segment])
    return settings, entries, slopes


def _round_to_levels(spec: DeviceSpec, settings: Tensor) -> Tensor:
    if spec.control_step is None or spec.control_range is None:
        return settings
    low, high = spec.control_range
    return (low + ((settings - low) / spec.control_step).round() * spec.control_step).clamp(low, high)


def _descend(
    session: Session, weight: Tensor, controls: nn.Parameter, product: Product, gain: bool, steps: int
) -> MatrixFit:
    low, high = session.spec.control_range or (float(controls.min()) - 1, float(controls.max()) + 1)
    stride = _STRIDE * (high - low)
    optimizer = torch.optim.Adam([controls], lr=stride)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1), eta_min=stride / 100)
    vectors, power = orthogonal_probes(weight.shape[1], weight.dtype)
    vectors = vectors.to(weight.device)
    frozen = not controls.requires_grad
    controls.requires_grad_()
    best: MatrixFit | None = None
    for turn in range(steps + 1):
        with torch.set_grad_enabled(turn < steps):
            answers = product(vectors)
        matrix = answers.detach().mT @ vectors / power
        factor = _best_gain(matrix, weight, gain)
        residual = _residual(matrix, weight, factor)
        if best is None or residual < best.residual:
            best = MatrixFit(controls.detach().clone(), factor, residual)
        if turn < steps:
            optimizer.zero_grad()
            # |gain A - W|^2 / 2, measured with orthogonal vectors. At the best gain its derivative by the gain is zero.
            (factor * answers - vectors @ weight.mT).square().sum().mul(0.5 / power).backward()
            optimizer.step()
            schedule.step()
    controls.requires_grad_(not frozen)
    assert best is not None
    return best
