"""Measurements of astralora itself: always per hardware operation, or as ratios within one process."""

from .adapter_summary import summarize, verdict
from .adapters import ADAPTER_METHODS, AdapterMethod, Budget, adapters
from .drift import drift
from .efficiency import Efficiency, Race, efficiency
from .fidelity import fidelity
from .identification import identification
from .lowrank import LOWRANK, LowRankMethod, lowrank
from .methods import parse_method
from .overhead import overhead
from .plots import adapters_png, drift_png, efficiency_png, fidelity_png, lowrank_png, overhead_png
from .refresh import refresh
from .session import session_overhead
from .simulators import simulators
from .transport import transport

__all__ = [
    "ADAPTER_METHODS",
    "LOWRANK",
    "AdapterMethod",
    "Budget",
    "Efficiency",
    "LowRankMethod",
    "Race",
    "adapters",
    "adapters_png",
    "drift",
    "drift_png",
    "efficiency",
    "efficiency_png",
    "fidelity",
    "fidelity_png",
    "identification",
    "lowrank",
    "lowrank_png",
    "overhead",
    "overhead_png",
    "parse_method",
    "refresh",
    "session_overhead",
    "simulators",
    "summarize",
    "transport",
    "verdict",
]
