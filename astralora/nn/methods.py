"""Choose an estimator and a surrogate for a device by the name of a method."""

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


# A warning is given below the first cosine of the control gradients; it states the price of the second cosine.
_POOR = 0.5
_GOOD = 0.9


class ExpensiveGradientWarning(UserWarning):
    """Warn that a device without a calibrated twin needs many programs and still gets poor gradients."""


class Choice(NamedTuple):
    """Hold the choice of a method for a device.

    Attributes:
        estimator: name of the estimator of control gradients.
        surrogate: name of the surrogate for input gradients.
        options: options of the estimator that differ from its defaults.
    """

    estimator: str
    surrogate: str
    options: Mapping[str, Any] = {}


def _auto(session: Session) -> Choice:
    spec = session.spec
    if spec.linear and spec.coupling == "elementwise":
        # Vectors are cheap compared with programs, so every probe is sent twice to reduce noise. A measurement needs
        # one vector for each input. A wide device measures less often, so that a step costs the same.
        every = max(8, spec.in_features // 64)
        return Choice("elementwise", "measured", {"every": every, "repeats": 2 if spec.noise_std else 1})
    if spec.linear and spec.coupling == "sparse":
        return Choice("coloured", "measured")
    if spec.coupling in ("elementwise", "output"):
        return Choice("output", "online")
    return _twin(session) if _calibrated_twin(session) is not None else Choice("orthogonal", "online")


def _paper(_: Session) -> Choice:
    return Choice("gaussian", "psi")


def _twin(session: Session) -> Choice:
    twin = _calibrated_twin(session)
    if twin is None:
        return Choice("twin", "twin")
    return Choice("twin", "twin", {"twin": TwinDrift(twin) if isinstance(twin, CalibratedTwin) else twin})


def _exact(_: Session) -> Choice:
    return Choice("exact", "exact")


def _calibrated_twin(session: Session) -> Differentiable | None:
    """Return the twin of a calibrated device; None for other devices."""
    device = session.capability(Twinned)
    return None if device is None else device.twin


METHODS: dict[str, Callable[[Session], Choice]] = {
    "auto": _auto,
    "paper": _paper,
    "twin": _twin,
    "exact": _exact,
}
"""All methods by name; a method is a function of the device's session that returns a `Choice`.

``auto`` chooses the best method for the device's spec; with dense coupling it uses the twin of a calibrated device.
``paper`` is the published algorithm of arXiv 2509.15113, as a reference. ``twin`` backpropagates through a
differentiable model of the device: the twin from its calibration, or a model given as ``twin=...``. ``exact`` needs a
simulator and computes the exact gradient, which the other methods estimate.
"""


def choose_method(
    session: Session,
    method: str = "auto",
    estimator: str | Estimator | None = None,
    surrogate: str | Surrogate | None = None,
    **options: Any,
) -> tuple[Estimator, Surrogate]:
    """Make the estimator and the surrogate for a device, without operating the device.

    Args:
        session: session of the device.
        method: name of the pair; see `METHODS`.
        estimator: name or object that replaces the method's estimator.
        surrogate: name or object that replaces the method's surrogate.
        **options: options of the estimator or the surrogate; each option is passed to the object that takes it.

    Raises:
        ConfigurationError: a name or an option is unknown, or estimator or surrogate cannot work on the device.
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
    made_estimator = ESTIMATORS.make(estimator, **options) if isinstance(estimator, str) else estimator
    made_surrogate = SURROGATES.make(surrogate, **options) if isinstance(surrogate, str) else surrogate
    made_estimator.check(session)
    made_surrogate.check(session, made_estimator)
    expense = None if method != "auto" else expected_expense(session.spec, made_estimator)
    if expense is not None:
        warnings.warn(expense, ExpensiveGradientWarning, stacklevel=2)
    return made_estimator, made_surrogate


def expected_expense(spec: DeviceSpec, estimator: Estimator) -> str | None:
    """Return the text of a warning if gradients will be poor without a calibration; otherwise return None.

    With S random directions for P controls, the cosine to the true gradient is at best sqrt(S / (S + P)).
    """
    if not isinstance(estimator, ZeroOrder) or spec.coupling != "dense":
        return None
    samples, controls = estimator.count(spec.num_controls), spec.num_controls
    cosine = sqrt(samples / (samples + controls))
    if cosine >= _POOR:
        return None
    enough = ceil(controls * _GOOD**2 / (1 - _GOOD**2))
    return (
        f"{spec.name!r} has {controls:,} controls with dense coupling and no calibrated twin: each step needs "
        f"{samples:,} programs for a control gradient of cosine {cosine:.2f} at best, and would need {enough:,} "
        f"for {_GOOD}; 'astralora calibrate' needs about 64 programs once, and steps then need none"
    )


def method_options(estimator: str | Estimator, surrogate: str | Surrogate) -> set[str]:
    """Return the names of the options that estimator and surrogate take; an object that exists already takes none."""
    taken: set[str] = {"seed"}
    if isinstance(estimator, str):
        taken |= ESTIMATORS.takes(estimator)
    if isinstance(surrogate, str):
        taken |= SURROGATES.takes(surrogate)
    return taken


def _name(choice: object) -> str:
    return repr(choice) if isinstance(choice, str) else type(choice).__name__
