"""Compute layers of torch models on devices, and put such layers into a model."""

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
