"""Benchmark astralora, per hardware operation or as ratios within one process."""

from .adapter_methods import ADAPTER_METHODS, AdapterMethod, Budget
from .adapter_summary import summarize, verdict
from .adapters import adapters
from .drift import drift
from .efficiency import Efficiency, EfficiencyCase, efficiency
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
    "EfficiencyCase",
    "LowRankMethod",
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
