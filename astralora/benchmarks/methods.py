"""Parse method names, and set up gradient comparisons."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor

from ..common.errors import ConfigurationError
from ..devices import Differentiable, Session, derive_generator, initial_controls, make_device
from ..estimators import ESTIMATORS, Exact, Gaussian
from ..nn.methods import METHODS
from ..surrogates import SURROGATES

__all__ = ["best_step", "cosine", "open_chip", "parse_method", "problem"]

# Steps to try as shares of the control range; two control levels are tried as well.
_SHARES = (1 / 256, 1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8)
_DRAWS = 3


def parse_method(name: str) -> dict[str, Any]:
    """Return the options of `attach` for a method name from the command line.

    Args:
        name: name of a registered method, estimator or surrogate, or an estimator and a surrogate with a plus sign
            between them. An estimator or surrogate that is not named is chosen as by ``auto``.

    Raises:
        ConfigurationError: nothing of this name is registered.
    """
    if name in METHODS:
        return {"method": name}
    estimator, plus, surrogate = name.partition("+")
    if plus:
        ESTIMATORS.find(estimator)
        SURROGATES.find(surrogate)
        return {"estimator": estimator, "surrogate": surrogate}
    if name in ESTIMATORS:
        measures = ESTIMATORS.find(name).measures_transfer_matrix
        return {"estimator": name, "surrogate": "measured" if measures else "online"}
    if name in SURROGATES:
        return {"surrogate": name}
    known = list(dict.fromkeys([*METHODS, *ESTIMATORS, *SURROGATES]))
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    raise ConfigurationError(f"there is no method, estimator or surrogate named {name!r}; {guess}")


def open_chip(device: str, impairments: str, size: tuple[int, int], seed: int) -> tuple[Session, Tensor]:
    """Open a session on the chip of this seed, and return the session and initial controls."""
    session = Session(
        make_device(device, in_features=size[0], out_features=size[1], impairments=impairments, seed=seed)
    )
    session.open()
    return session, initial_controls(session.spec, derive_generator(seed, "bench", "controls"))


def problem(session: Session, controls: Tensor, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs uniform over the input range, their outputs, and normal output gradients."""
    spec = session.spec
    generator = derive_generator(seed, "bench", "problem")
    low, high = spec.input_range or (-1.0, 1.0)
    inputs = torch.empty(batch, spec.in_features).uniform_(low, high, generator=generator)
    grad_outputs = torch.randn(batch, spec.out_features, generator=generator)
    return inputs, session.apply(controls, inputs), grad_outputs


def cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine between two gradients of any shape; 0 where one of them is 0."""
    scale = float(a.norm() * b.norm())
    return float((a * b).sum()) / scale if scale else 0.0


def best_step(device: str, impairments: str, size: tuple[int, int], batch: int) -> float | None:
    """Return the perturbation size with which `Gaussian` comes closest to the exact gradient on a device.

    The published method has no rule for this size, which must suit the chip's levels and noise. The operations of this
    search are not counted.

    Returns:
        The size in control units; None for a device without a law, for which the method's default is used.
    """
    session, controls = open_chip(device, impairments, size, seed=0)
    if session.capability(Differentiable) is None:
        return None
    spec = session.spec
    low, high = spec.control_range or (0.0, 1.0)
    level = spec.control_step or 0.0
    steps = sorted({max(share * (high - low), level) for share in _SHARES} | ({2 * level} - {0.0}))
    data = problem(session, controls, batch, seed=0)
    truth = Exact().estimate(session, controls, *data)

    def quality(step: float) -> float:
        estimates = [
            Gaussian(samples=100, step=step, seed=seed).estimate(session, controls, *data) for seed in range(_DRAWS)
        ]
        return sum(cosine(estimate, truth) for estimate in estimates)

    return max(steps, key=quality)
