"""Compute layers of torch models on devices, and replace layers of a model by device layers."""

from .attachment import attach, detach
from .conv import BlackBoxConv2d
from .health import Health, StaleGradientWarning
from .layer import BlackBoxLinear
from .methods import METHODS, ExpensiveGradientWarning

__all__ = [
    "METHODS",
    "BlackBoxConv2d",
    "BlackBoxLinear",
    "ExpensiveGradientWarning",
    "Health",
    "StaleGradientWarning",
    "attach",
    "detach",
]
