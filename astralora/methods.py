"""Named pairs of an estimator and a surrogate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from devices import DeviceSpec, Session

from .errors import ConfigurationError
from .estimators import ESTIMATORS, Estimator
from .surrogates import SURROGATES, Surrogate

__all__ = ["METHODS", "Choice", "choose_method", "method_options"]


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


def _auto(spec: DeviceSpec) -> Choice:
    if spec.linear and spec.coupling == "elementwise":
        # Vectors are cheap where programs are not: against noise, every probe is sent twice. A measurement takes as
        # many vectors as the device is wide; where it comes less often by as much, a step's share of it stays.
        every = max(8, spec.in_features // 64)
        return Choice("elementwise", "measured", {"every": every, "repeats": 2 if spec.noise_std else 1})
    if spec.linear and spec.coupling == "sparse":
        return Choice("coloured", "measured")
    if spec.coupling in ("elementwise", "output"):
        return Choice("output", "online")
    return Choice("orthogonal", "online")


def _paper(_: DeviceSpec) -> Choice:
    return Choice("gaussian", "psi")


def _twin(_: DeviceSpec) -> Choice:
    return Choice("twin", "twin")


def _exact(_: DeviceSpec) -> Choice:
    return Choice("exact", "exact")


METHODS: dict[str, Callable[[DeviceSpec], Choice]] = {
    "auto": _auto,
    "paper": _paper,
    "twin": _twin,
    "exact": _exact,
}
"""What each method comes to on a device; one of your own is a function of the spec.

``auto`` takes the best for what the spec promises. ``paper`` is the published algorithm, arXiv 2509.15113,
kept as the reference. ``twin`` backpropagates through a differentiable model of the device, given as ``twin=...``.
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
    default = Choice(*METHODS[method](session.spec))
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
    return chosen


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
