"""Controls that do not move: told from those that move oddly, and held where they are."""

from __future__ import annotations

from collections.abc import Mapping
from math import log, sqrt

import torch
from torch import Tensor

from ..devices import Constant, DeviceSpec, Identifiable
from .evaluation import foresee, within_range
from .pairs import Pairs

__all__ = ["HeldModel", "find_held"]

# Values over the range that a control may be held at, and those of each of its constants that it may have if it moves.
_VALUES, _HALVINGS = 17, 6
_ALIVE = 7
# Of a mesh, controls that a fit had to move so many spreads away from the drawing are looked at, the oddest first; with
# as many settings as tell them apart.
_ODD = 4.0
_MOST = 16
_SETTINGS = 16
# What is assumed of a control before anything is measured: one in so many does not move.
_RARE = 100.0
# More than this share of them is no chip with a few stuck controls, but another law.
_TOO_MANY = 0.1


class HeldModel:
    """A law some controls of which stay where they are, whatever is written.

    Args:
        model: the law.
        which: the controls, (count,).
        at: where they seem to be held, (count,).
    """

    name = "held_at"

    def __init__(self, model: Identifiable, which: Tensor, at: Tensor) -> None:
        self._model, self.which, self.at = model, which, at

    @property
    def spec(self) -> DeviceSpec:
        """Of the law."""
        return self._model.spec

    def constants(self) -> dict[str, Constant]:
        """Those of the law, and what the controls are held at: each as likely anywhere in its range."""
        low, high = self.spec.control_range or (-1.0, 1.0)
        held = Constant(tuple(self.which.shape), (low + high) / 2, (high - low) / sqrt(12), low, high)
        return {**self._model.constants(), self.name: held}

    def law(self, constants: Mapping[str, Tensor], controls: Tensor, inputs: Tensor) -> Tensor:
        """See `astralora.devices.Identifiable`."""
        at = constants.get(self.name, self.at).to(controls)
        held = controls.index_copy(-1, self.which, at.expand(*controls.shape[:-1], -1))
        return self._model.law({name: value for name, value in constants.items() if name != self.name}, held, inputs)

    def written_for(self, constants: Mapping[str, Tensor], acting: Tensor) -> Tensor:
        """See `astralora.devices.Identifiable`."""
        return self._model.written_for(constants, acting)

    def fixed(self, at: Tensor) -> Tensor:
        """What the controls are held at, nan for all others: (num_controls,)."""
        fixed = torch.full((self.spec.num_controls,), float("nan"))
        fixed[self.which] = at.float()
        return fixed


def find_held(
    model: Identifiable, constants: Mapping[str, Tensor], pairs: Pairs, spec: DeviceSpec, noise: float
) -> HeldModel | None:
    """The controls that answers are explained better by if they do not move than if they do.

    Three hypotheses are compared: the control with the constants that were fitted; with others of those that a moving
    control may have; and held at one of several values. By twice the log odds: squares over the noise, Student's t of
    the constants, and one in a hundred for being stuck.

    Where each control sets an entry of its own, all are tried at once. In a mesh those are tried whose constants a fit
    had to move far from the drawing, as it does for a control that does not move (its efficiency goes to nothing).

    Args:
        model: the law.
        constants: as fitted so far.
        pairs: that were fitted.
        spec: of the chip.
        noise: of an answer.

    Returns:
        The law with those held; None where all move.
    """
    if spec.control_range is None:
        return None
    own = {name: known for name, known in model.constants().items() if known.shape == (spec.num_controls,)}
    low, high = spec.control_range
    values = torch.linspace(low, high, _VALUES)
    with torch.no_grad():
        if spec.coupling == "elementwise" and spec.linear:
            trial: _Trial = _Entries(model, constants, pairs, spec, noise)
            which = torch.arange(spec.num_controls)
        else:
            which = _odd(own, constants)
            if not len(which):
                return None
            trial = _Outputs(model, constants, pairs, spec, noise, which)
        tried = torch.stack([trial.held(own, torch.full((len(which),), float(value))) for value in values])
        best, at = tried.min(dim=0).values, values[tried.argmin(dim=0)]
        step = (high - low) / (_VALUES - 1)
        for _ in range(_HALVINGS):
            step /= 2
            for side in (-step, step):
                beside = (at + side).clamp(low, high)
                rise = trial.held(own, beside)
                at, best = at.where(rise >= best, beside), torch.minimum(best, rise)
        odds = best + 2 * log(_RARE)
        odds = odds - sum((_surprise(known, constants[name][which]) for name, known in own.items()), torch.zeros(()))
        for name, known in own.items():
            for spreads in torch.linspace(-3, 3, _ALIVE).tolist():
                value = known.nominal + spreads * known.spread
                if known.low < value < known.high:
                    prior = _surprise(known, torch.tensor(value))
                    odds = torch.maximum(odds, best + 2 * log(_RARE) - trial.moving(own, name, value) - prior)
    stuck = (odds < 0).nonzero()[:, 0]
    if not len(stuck) or len(stuck) > max(2.0, _TOO_MANY * spec.num_controls):
        return None
    return HeldModel(model, which[stuck], at[stuck])


def _odd(own: Mapping[str, Constant], constants: Mapping[str, Tensor]) -> Tensor:
    """The controls whose constants are the furthest from the drawing."""
    if not own:
        return torch.empty(0, dtype=torch.int64)
    far = torch.stack([(constants[name] - known.nominal).abs() / known.spread for name, known in own.items()])
    most = far.amax(dim=0)
    order = most.argsort(descending=True)[:_MOST]
    return order[most[order] > _ODD]


def _surprise(known: Constant, value: Tensor) -> Tensor:
    """Twice minus the log of Student's t with four degrees of freedom, as the fit assumes it: 0 as drawn."""
    return 4 * torch.log1p(((value - known.nominal) / known.spread).square() / 4)


class _Trial:
    """By how much squares over the noise rise when one control at a time does something else than the fit says."""

    def held(self, own: Mapping[str, Constant], at: Tensor) -> Tensor:
        """Held at one value each, (candidates,), with constants of its own as drawn: (candidates,)."""
        raise NotImplementedError

    def moving(self, own: Mapping[str, Constant], name: str, value: float) -> Tensor:
        """Moving, with one constant of its own at a value and the others as drawn: (candidates,)."""
        raise NotImplementedError


class _Entries(_Trial):
    """All controls of a device whose controls set an entry each; neighbours one at a time, like squares of a board."""

    def __init__(
        self, model: Identifiable, constants: Mapping[str, Tensor], pairs: Pairs, spec: DeviceSpec, noise: float
    ) -> None:
        self._model, self._constants, self._pairs = model, constants, pairs
        foreseen = foresee(model, constants, pairs)
        valid = within_range(pairs.outputs, foreseen, spec, noise)
        left = (pairs.outputs - foreseen) * valid / noise
        self._unit = torch.eye(spec.in_features)
        self._slope = left.mT @ pairs.inputs / noise  # (settings, out_features, in_features)
        self._curvature = valid.mT @ pairs.inputs.square() / noise**2
        rows = torch.arange(spec.num_controls) // spec.in_features
        self._board = ((rows + torch.arange(spec.num_controls) % spec.in_features) % 2).bool()
        self._now = self._matrices(constants, pairs.settings)

    def held(self, own: Mapping[str, Constant], at: Tensor) -> Tensor:
        return self._of_sides({name: known.nominal for name, known in own.items()}, at)

    def moving(self, own: Mapping[str, Constant], name: str, value: float) -> Tensor:
        return self._of_sides({each: known.nominal for each, known in own.items()} | {name: value}, None)

    def _of_sides(self, own: Mapping[str, float], held: Tensor | None) -> Tensor:
        found = []
        for side in (self._board, ~self._board):
            mixed = {name: self._constants[name].where(~side, value) for name, value in own.items()}
            settings = self._pairs.settings if held is None else self._pairs.settings.where(~side, held)
            found.append(self._matrices({**self._constants, **mixed}, settings))
        return self._rise(found)

    def _matrices(self, constants: Mapping[str, Tensor], settings: Tensor) -> Tensor:
        """Transfer matrices as far as controls set them, (settings, out_features, in_features)."""
        dark = self._model.law(constants, settings[:1], torch.zeros(1, len(self._unit)))
        return (self._model.law(constants, settings, self._unit) - dark).mT

    def _rise(self, sides: list[Tensor]) -> Tensor:
        board = self._board.view(self._now.shape[1:])
        change = sides[0].where(board, sides[1]) - self._now
        return (change.square() * self._curvature - 2 * change * self._slope).sum(dim=0).flatten()


class _Outputs(_Trial):
    """A few controls of any device, one after the other."""

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
        self._before = self._left(model, constants)

    def held(self, own: Mapping[str, Constant], at: Tensor) -> Tensor:
        return self._one_by_one({name: known.nominal for name, known in own.items()}, at)

    def moving(self, own: Mapping[str, Constant], name: str, value: float) -> Tensor:
        return self._one_by_one({each: known.nominal for each, known in own.items()} | {name: value}, None)

    def _one_by_one(self, own: Mapping[str, float], held: Tensor | None) -> Tensor:
        left = []
        for place, control in enumerate(self._which):
            mixed = {name: self._constants[name].index_fill(0, control, value) for name, value in own.items()}
            model = self._model if held is None else HeldModel(self._model, control.view(1), held[place : place + 1])
            left.append(self._left(model, {**self._constants, **mixed}))
        return self._rise(left)

    def _rise(self, left: list[float]) -> Tensor:
        # As all settings would have it.
        return self._share * (torch.tensor(left) - self._before)

    def _left(self, model: Identifiable, constants: Mapping[str, Tensor]) -> float:
        foreseen = foresee(model, constants, self._pairs)
        valid = within_range(self._pairs.outputs, foreseen, self._spec, self._noise)
        return float(((self._pairs.outputs - foreseen) * valid).square().sum()) / self._noise**2
