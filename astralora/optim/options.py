"""Check the options of Flora."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import floor, isfinite, log
from numbers import Real
from typing import Any

from torch import Tensor

from ..common.checks import check_whole
from ..common.errors import ConfigurationError
from .momentum import is_compressed
from .projection import check_projection
from .quantization import choose_storage

__all__ = ["DivergingMomentumWarning", "check_options", "warn_of_divergence"]


class DivergingMomentumWarning(UserWarning):
    """Warn that a compressed momentum will diverge, since its subspace changes too often."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse invalid options of a group of parameters.

    Raises:
        ConfigurationError: an option is outside of its range; the message names it and the valid values.
    """
    _check_rates(options)
    if options["rank"] is not None:
        check_whole("rank", options["rank"])
    check_whole("kappa", options["kappa"])
    _check_number("beta1", options["beta1"], lambda value: 0 <= value < 1, "at least 0 and below 1", optional=True)
    _check_number("decay_rate", options["decay_rate"], lambda value: value <= 0, "at most 0")
    _check_number("clip_threshold", options["clip_threshold"], lambda value: value > 0, "above 0")
    _check_number("weight_decay", options["weight_decay"], lambda value: value >= 0, "at least 0")
    eps = options["eps"]
    if not (isinstance(eps, Sequence) and len(eps) == 2 and all(_is_number(part) and part >= 0 for part in eps)):
        raise ConfigurationError(
            f"eps must be two numbers of at least 0, the number added to squared gradients and the least RMS of a "
            f"parameter, not {eps!r}"
        )
    check_projection(options["projection"])
    choose_storage(options["quantization"])


def warn_of_divergence(weights: Iterable[Tensor], options: Mapping[str, Any]) -> None:
    """Warn once for each group if its momentum will diverge.

    A move of the subspace, C <- down_new(up_old(C)), multiplies |C|^2 on average by 1 + d/r for Gaussian projections,
    and by d/r for orthonormal ones. The kappa steps between two moves multiply it by beta1^(2 kappa). It diverges if
    the product is more than 1.
    """
    worst: tuple[float, Tensor] | None = None
    for weight in weights:
        if is_compressed(weight.shape, options):
            gain = min(weight.shape) / options["rank"] + (options["projection"] == "gaussian")
            if worst is None or gain > worst[0]:
                worst = gain, weight
    if worst is None:
        return
    gain, weight = worst
    kappa, beta1 = options["kappa"], options["beta1"]
    decay = beta1 ** (2 * kappa)
    if decay * gain >= 1 and gain > 1:
        least = floor(log(gain) / (-2 * log(beta1))) + 1
        warnings.warn(
            f"the momentum of a weight of {' x '.join(map(str, weight.shape))} at rank {options['rank']} will diverge: "
            f"its square grows {gain:.3g} times at every move of its subspace, and shrinks only to {decay:.3g} in the "
            f"kappa = {kappa} steps until the next move; use kappa of at least {least}, a lower beta1 or a higher rank",
            DivergingMomentumWarning,
            stacklevel=2,
        )


def _check_rates(options: Mapping[str, Any]) -> None:
    lr, relative = options["lr"], options["relative_step"]
    if relative and lr is not None:
        raise ConfigurationError(
            f"relative_step=True sets the step size, so that lr={lr!r} would have no effect; leave one of them out"
        )
    if options["warmup_init"] and not relative:
        raise ConfigurationError("warmup_init=True applies to the relative step, and needs relative_step=True")
    if relative:
        return
    if lr is None:
        raise ConfigurationError("lr is missing; pass it, or set relative_step=True")
    _check_number("lr", float(lr) if isinstance(lr, Tensor) else lr, lambda value: value >= 0, "at least 0")


def _check_number(
    name: str, value: Any, legal: Callable[[Any], bool], expected: str, *, optional: bool = False
) -> None:
    if optional and value is None:
        return
    if not (_is_number(value) and legal(value)):
        raise ConfigurationError(f"{name} must be {expected}, not {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
