"""Find controls that do not move, and model the law of a chip with such controls."""

from __future__ import annotations

from collections.abc import Mapping
from math import log, sqrt

import torch
from torch import Tensor

from ..devices import Constant, DeviceSpec, Identifiable
from .evaluation import predict, unsaturated_mask
from .pairs import Pairs
from .prior import improbability

__all__ = ["StuckModel", "find_stuck"]

# Number of values over the range that a control may be stuck at, and of refinements of the best one.
_VALUES, _HALVINGS = 17, 6
# Number of values of each constant that a moving control may have.
_MOVING_VALUES = 7
# In a mesh, the candidates are the controls with a constant at least this many spreads from nominal, the farthest
# first; they are compared at this many settings.
_FAR = 4.0
_MOST_CANDIDATES = 16
_SETTINGS = 16
# Prior odds: one in this many controls is stuck.
_PRIOR_ODDS = 100.0
# A larger share of stuck controls means that the law is wrong.
_MOST_STUCK = 0.1


class StuckModel:
    """Describe a law with stuck controls.

    Args:
        model: law.
        which: stuck controls, (count,).
        at: values that they are stuck at, (count,).
    """

    name = "stuck_at"

    def __init__(self, model: Identifiable, which: Tensor, at: Tensor) -> None:
        self._model, self.which, self.at = model, which, at

    @property
    def spec(self) -> DeviceSpec:
        """Return the spec of the law."""
        return self._model.spec

    def constants(self) -> dict[str, Constant]:
        """Return the constants of the law, and the stuck values, equally likely over the control range."""
        low, high = self.spec.control_range or (-1.0, 1.0)
        stuck = Constant(tuple(self.which.shape), (low + high) / 2, (high - low) / sqrt(12), low, high)
        return {**self._model.constants(), self.name: stuck}

    def law(self, constants: Mapping[str, Tensor], controls: Tensor, inputs: Tensor) -> Tensor:
        """Return the outputs of the law; see `Identifiable`."""
        at = constants.get(self.name, self.at).to(controls)
        stuck = controls.index_copy(-1, self.which, at.expand(*controls.shape[:-1], -1))
        return self._model.law({name: value for name, value in constants.items() if name != self.name}, stuck, inputs)

    def written_for(self, constants: Mapping[str, Tensor], acting: Tensor) -> Tensor:
        """Return the settings to write; see `Identifiable`."""
        return self._model.written_for(constants, acting)

    def fixed(self, at: Tensor) -> Tensor:
        """Return the stuck values, nan for all other controls: (num_controls,)."""
        fixed = torch.full((self.spec.num_controls,), float("nan"))
        fixed[self.which] = at.float()
        return fixed


def find_stuck(
    model: Identifiable, constants: Mapping[str, Tensor], pairs: Pairs, spec: DeviceSpec, noise: float
) -> StuckModel | None:
    """Find the controls that explain the answers better if they are stuck than if they move.

    Three hypotheses are compared: the control moves with the fitted constants; it moves with other plausible constants;
    or it is stuck at one of several values. They are compared by twice the log odds: squared residuals in units of the
    noise, Student's t of the constants, and prior odds of one in a hundred for a stuck control.

    Where each control sets one entry, all controls are compared at once. In a mesh, the candidates are controls whose
    fitted constants are far from nominal; for a stuck control, the fitted efficiency tends to 0.

    Args:
        model: law.
        constants: fitted constants.
        pairs: fitted pairs.
        spec: spec of the chip.
        noise: noise of an answer.

    Returns:
        The law with the stuck controls; None if no control is stuck.
    """
    if spec.control_range is None:
        return None
    local = {name: known for name, known in model.constants().items() if known.shape == (spec.num_controls,)}
    low, high = spec.control_range
    values = torch.linspace(low, high, _VALUES)
    with torch.no_grad():
        if spec.coupling == "elementwise" and spec.linear:
            comparison: _Comparison = _EntryComparison(model, constants, pairs, spec, noise)
            which = torch.arange(spec.num_controls)
        else:
            which = _farthest_controls(local, constants)
            if not len(which):
                return None
            comparison = _OutputComparison(model, constants, pairs, spec, noise, which)
        tried = torch.stack([comparison.stuck(local, torch.full((len(which),), float(value))) for value in values])
        best, at = tried.min(dim=0).values, values[tried.argmin(dim=0)]
        step = (high - low) / (_VALUES - 1)
        for _ in range(_HALVINGS):
            step /= 2
            for shift in (-step, step):
                neighbour = (at + shift).clamp(low, high)
                rise = comparison.stuck(local, neighbour)
                at, best = at.where(rise >= best, neighbour), torch.minimum(best, rise)
        odds = best + 2 * log(_PRIOR_ODDS)
        odds = odds - sum((_surprise(known, constants[name][which]) for name, known in local.items()), torch.zeros(()))
        for name, known in local.items():
            for spreads in torch.linspace(-3, 3, _MOVING_VALUES).tolist():
                value = known.nominal + spreads * known.spread
                if known.low < value < known.high:
                    prior = _surprise(known, torch.tensor(value))
                    odds = torch.maximum(
                        odds, best + 2 * log(_PRIOR_ODDS) - comparison.moving(local, name, value) - prior
                    )
    found = (odds < 0).nonzero()[:, 0]
    if not len(found) or len(found) > max(2.0, _MOST_STUCK * spec.num_controls):
        return None
    return StuckModel(model, which[found], at[found])


def _farthest_controls(local: Mapping[str, Constant], constants: Mapping[str, Tensor]) -> Tensor:
    """Return the controls whose constants are farthest from nominal."""
    if not local:
        return torch.empty(0, dtype=torch.int64)
    far = torch.stack([(constants[name] - known.nominal).abs() / known.spread for name, known in local.items()])
    most = far.amax(dim=0)
    order = most.argsort(descending=True)[:_MOST_CANDIDATES]
    return order[most[order] > _FAR]


def _surprise(known: Constant, value: Tensor) -> Tensor:
    """Return twice the negative log prior of a constant at a value."""
    return improbability((value - known.nominal) / known.spread)


class _Comparison:
    """Compute how much a change of one control increases the squared residuals, in units of the noise's variance."""

    def stuck(self, local: Mapping[str, Constant], at: Tensor) -> Tensor:
        """Return the increase if each candidate is stuck at its value and has nominal constants: (candidates,)."""
        raise NotImplementedError

    def moving(self, local: Mapping[str, Constant], name: str, value: float) -> Tensor:
        """Return the increase if each candidate has this value of one constant, others nominal: (candidates,)."""
        raise NotImplementedError


class _EntryComparison(_Comparison):
    """Compare all controls of an elementwise device at once.

    Neighbours interact, so the controls are changed in two groups, like the colours of a chessboard.
    """

    def __init__(
        self, model: Identifiable, constants: Mapping[str, Tensor], pairs: Pairs, spec: DeviceSpec, noise: float
    ) -> None:
        self._model, self._constants, self._pairs = model, constants, pairs
        predicted = predict(model, constants, pairs)
        valid = unsaturated_mask(pairs.outputs, predicted, spec, noise)
        residual = (pairs.outputs - predicted) * valid / noise
        self._unit = torch.eye(spec.in_features)
        self._slope = residual.mT @ pairs.inputs / noise  # (settings, out_features, in_features)
        self._curvature = valid.mT @ pairs.inputs.square() / noise**2
        rows = torch.arange(spec.num_controls) // spec.in_features
        self._colour = ((rows + torch.arange(spec.num_controls) % spec.in_features) % 2).bool()
        self._present = self._matrices(constants, pairs.settings)

    def stuck(self, local: Mapping[str, Constant], at: Tensor) -> Tensor:
        return self._both_colours({name: known.nominal for name, known in local.items()}, at)

    def moving(self, local: Mapping[str, Constant], name: str, value: float) -> Tensor:
        return self._both_colours({each: known.nominal for each, known in local.items()} | {name: value}, None)

    def _both_colours(self, local: Mapping[str, float], stuck: Tensor | None) -> Tensor:
        """Return the increase with changed constants, computed for one colour at a time."""
        found = []
        for colour in (self._colour, ~self._colour):
            mixed = {name: self._constants[name].where(~colour, value) for name, value in local.items()}
            settings = self._pairs.settings if stuck is None else self._pairs.settings.where(~colour, stuck)
            found.append(self._matrices({**self._constants, **mixed}, settings))
        return self._rise(found)

    def _matrices(self, constants: Mapping[str, Tensor], settings: Tensor) -> Tensor:
        """Return transfer matrices without the dark level, (settings, out_features, in_features)."""
        dark = self._model.law(constants, settings[:1], torch.zeros(1, len(self._unit)))
        return (self._model.law(constants, settings, self._unit) - dark).mT

    def _rise(self, colours: list[Tensor]) -> Tensor:
        """Return the increase of squared residuals for the changed matrices of both colours."""
        board = self._colour.view(self._present.shape[1:])
        change = colours[0].where(board, colours[1]) - self._present
        return (change.square() * self._curvature - 2 * change * self._slope).sum(dim=0).flatten()


class _OutputComparison(_Comparison):
    """Compare a few controls of any device, one after the other."""

    def __init__(
        self,
        model: Identifiable,
        constants: Mapping[str, Tensor],
        pairs: Pairs,
        spec: DeviceSpec,
        noise: float,
        which: Tensor,
    ) -> None:
        self._model, self._constants, self._which = model, constants, which
        self._share = max(1.0, len(pairs.settings) / _SETTINGS)
        self._pairs, self._spec, self._noise = pairs.part(slice(0, _SETTINGS)), spec, noise
        self._before = self._squares(model, constants)

    def stuck(self, local: Mapping[str, Constant], at: Tensor) -> Tensor:
        return self._each_alone({name: known.nominal for name, known in local.items()}, at)

    def moving(self, local: Mapping[str, Constant], name: str, value: float) -> Tensor:
        return self._each_alone({each: known.nominal for each, known in local.items()} | {name: value}, None)

    def _each_alone(self, local: Mapping[str, float], stuck: Tensor | None) -> Tensor:
        """Return the increase with changed constants, computed for one control at a time."""
        squares = []
        for place, control in enumerate(self._which):
            mixed = {name: self._constants[name].index_fill(0, control, value) for name, value in local.items()}
            model = self._model if stuck is None else StuckModel(self._model, control.view(1), stuck[place : place + 1])
            squares.append(self._squares(model, {**self._constants, **mixed}))
        return self._rise(squares)

    def _rise(self, squares: list[float]) -> Tensor:
        """Return the increase of squared residuals, scaled to all settings."""
        return self._share * (torch.tensor(squares) - self._before)

    def _squares(self, model: Identifiable, constants: Mapping[str, Tensor]) -> float:
        """Return the sum of squared residuals, in units of the noise's variance."""
        predicted = predict(model, constants, self._pairs)
        valid = unsaturated_mask(self._pairs.outputs, predicted, self._spec, self._noise)
        return float(((self._pairs.outputs - predicted) * valid).square().sum()) / self._noise**2
