"""Train PyTorch models through photonic and analog accelerators, simulated or real.

    import astralora as al

    device = al.open_device("mrr", in_features=256, out_features=128, impairments="lab")
    model = al.attach(model, {"classifier.1": device})

From there on it is an ordinary PyTorch model in an ordinary training loop.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._rooms import check_rooms

check_rooms()

import devices  # noqa: E402
from devices import *  # noqa: E402, F403

from .attachment import attach, detach  # noqa: E402
from .calibration import calibrate  # noqa: E402
from .characterisation import Characterisation, characterise  # noqa: E402
from .conv import BlackBoxConv2d  # noqa: E402
from .errors import ConfigurationError  # noqa: E402
from .estimators import ESTIMATORS, Estimator, register_estimator  # noqa: E402
from .health import StaleGradientWarning  # noqa: E402
from .layer import BlackBoxLinear  # noqa: E402
from .methods import METHODS, ExpensiveGradientWarning  # noqa: E402
from .surrogates import SURROGATES, Surrogate, register_surrogate  # noqa: E402
from .twin_drift import StaleCalibrationWarning, TwinDrift  # noqa: E402

if TYPE_CHECKING:
    from . import adapters, lowrank, optim

__version__ = "0.1.0"

__all__ = [
    *devices.__all__,
    "ESTIMATORS",
    "METHODS",
    "SURROGATES",
    "BlackBoxConv2d",
    "BlackBoxLinear",
    "Characterisation",
    "ConfigurationError",
    "Estimator",
    "ExpensiveGradientWarning",
    "StaleCalibrationWarning",
    "StaleGradientWarning",
    "Surrogate",
    "TwinDrift",
    "adapters",
    "attach",
    "calibrate",
    "characterise",
    "detach",
    "lowrank",
    "optim",
    "register_estimator",
    "register_surrogate",
]

# Rooms of their own, imported when they are used.
_LATER = ("adapters", "lowrank", "optim")


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
