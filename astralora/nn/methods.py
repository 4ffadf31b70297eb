"""Named pairs of an estimator and a surrogate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from math import ceil, sqrt
from typing import Any, NamedTuple

from ..common.errors import ConfigurationError
from ..devices import CalibratedTwin, DeviceSpec, Differentiable, Session, Twinned
from ..estimators import ESTIMATORS, Estimator
from ..estimators.zero_order import ZeroOrder
from ..surrogates import SURROGATES, Surrogate
from ..surrogates.twin_drift import TwinDrift

__all__ = ["METHODS", "Choice", "ExpensiveGradientWarning", "choose_method", "expected_expense", "method_options"]


# The cosine of control gradients below which it is worth saying that there is a better way, and one to compare with.
_POOR = 0.5
_GOOD = 0.9


class ExpensiveGradientWarning(UserWarning):
    """A device without a calibrated twin, on which gradients take many programs and are poor all the same."""


class Choice(NamedTuple):
    """What a method comes to on a device.

    Attributes:
        estimator: of control gradients, by name.
        surrogate: of input gradients, by name.
        options: of the estimator, where they differ from its own.
    """

    estimator: str
    surrogate: str
    options: Mapping[str, Any] = {}


def _auto(session: Session) -> Choice:
    spec = session.spec
    if spec.linear and spec.coupling == "elementwise":
        # Vectors are cheap where programs are not: against noise, every probe is sent twice. A measurement takes as
        # many vectors as the device is wide; where it comes less often by as much, a step's share of it stays.
        every = max(8, spec.in_features // 64)
        return Choice("elementwise", "measured", {"every": every, "repeats": 2 if spec.noise_std else 1})
    if spec.linear and spec.coupling == "sparse":
        return Choice("coloured", "measured")
    if spec.coupling in ("elementwise", "output"):
        return Choice("output", "online")
    return _twin(session) if _known_twin(session) is not None else Choice("orthogonal", "online")


def _paper(_: Session) -> Choice:
    return Choice("gaussian", "psi")


def _twin(session: Session) -> Choice:
    twin = _known_twin(session)
    if twin is None:
        return Choice("twin", "twin")
    return Choice("twin", "twin", {"twin": TwinDrift(twin) if isinstance(twin, CalibratedTwin) else twin})


def _exact(_: Session) -> Choice:
    return Choice("exact", "exact")


def _known_twin(session: Session) -> Differentiable | None:
    """The model that a calibrated device comes with."""
    device = session.capability(Twinned)
    return None if device is None else device.twin


METHODS: dict[str, Callable[[Session], Choice]] = {
    "auto": _auto,
    "paper": _paper,
    "twin": _twin,
    "exact": _exact,
}
"""What each method comes to on a device; one of your own is a function of its session.

``auto`` takes the best for what the spec promises, and the twin of a calibrated device where coupling is dense.
``paper`` is the published algorithm, arXiv 2509.15113, kept as the reference. ``twin`` backpropagates through a
differentiable model of the device: the one that it was calibrated with, or one given as ``twin=...``.
``exact`` needs a simulator: the gradient that the others try to find.
"""


def choose_method(
    session: Session,
    method: str = "auto",
    estimator: str | Estimator | None = None,
    surrogate: str | Surrogate | None = None,
    **options: Any,
) -> tuple[Estimator, Surrogate]:
    """The estimator and the surrogate for a device, which is not operated for that.

    Args:
        session: guards the device.
        method: names both; see `METHODS`.
        estimator: takes the place of the method's, by name or as an object.
        surrogate: takes the place of the method's, by name or as an object.
        **options: for either of the two, given to the one that takes it.

    Raises:
        ConfigurationError: a name or an option that neither knows, or a device that one of them cannot work on.
    """
    if method not in METHODS:
        raise ConfigurationError(f"there is no method named {method!r}; known are {', '.join(METHODS)}")
    default = Choice(*METHODS[method](session))
    estimator = estimator or default.estimator
    surrogate = surrogate or default.surrogate
    taken = method_options(estimator, surrogate)
    for option in options:
        if option not in taken:
            raise ConfigurationError(
                f"neither estimator {_name(estimator)} nor surrogate {_name(surrogate)} takes an option "
                f"{option!r}; they take {', '.join(sorted(taken)) or 'none'}"
            )
    if estimator == default.estimator:
        options = {**default.options, **options}
    chosen = (
        ESTIMATORS.make(estimator, **options) if isinstance(estimator, str) else estimator,
        SURROGATES.make(surrogate, **options) if isinstance(surrogate, str) else surrogate,
    )
    chosen[0].check(session)
    chosen[1].check(session, chosen[0])
    expense = None if method != "auto" else expected_expense(session.spec, chosen[0])
    if expense is not None:
        warnings.warn(expense, ExpensiveGradientWarning, stacklevel=2)
    return chosen


def expected_expense(spec: DeviceSpec, estimator: Estimator) -> str | None:
    """What to say where gradients are going to be few and poor for want of a calibration; None where they are not.

    S random directions among P controls give a gradient whose cosine to the true one is sqrt(S / (S + P)) at best.
    """
    if not isinstance(estimator, ZeroOrder) or spec.coupling != "dense":
        return None
    samples, controls = estimator.count(spec.num_controls), spec.num_controls
    cosine = sqrt(samples / (samples + controls))
    if cosine >= _POOR:
        return None
    enough = ceil(controls * _GOOD**2 / (1 - _GOOD**2))
    return (
        f"{spec.name!r} has {controls:,} controls of dense coupling and no calibrated twin: each step takes "
        f"{samples:,} programs for a control gradient of cosine {cosine:.2f} at best, and would take {enough:,} "
        f"for {_GOOD}; 'astralora calibrate' takes some 64 programs once, and steps then take none"
    )


def method_options(estimator: str | Estimator, surrogate: str | Surrogate) -> set[str]:
    """The options that these two take between them; objects are made already, and take none."""
    taken: set[str] = {"seed"}
    if isinstance(estimator, str):
        taken |= ESTIMATORS.takes(estimator)
    if isinstance(surrogate, str):
        taken |= SURROGATES.takes(surrogate)
    return taken


def _name(choice: object) -> str:
    return repr(choice) if isinstance(choice, str) else type(choice).__name__
