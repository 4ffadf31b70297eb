"""Measurements of astralora itself: always per hardware operation, or as ratios within one process."""

from .efficiency import Efficiency, Race, efficiency
from .fidelity import fidelity
from .methods import parse_method
from .overhead import overhead
from .plots import efficiency_png, fidelity_png, overhead_png
from .session import session_overhead
from .transport import transport

__all__ = [
    "Efficiency",
    "Race",
    "efficiency",
    "efficiency_png",
    "fidelity",
    "fidelity_png",
    "overhead",
    "overhead_png",
    "parse_method",
    "session_overhead",
    "transport",
]
