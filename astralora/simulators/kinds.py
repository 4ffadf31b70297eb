"""List the simulated kinds."""

from __future__ import annotations

from .diffraction import Diffractive
from .elementwise import MRR, SLM, MatVec
from .fixed import Identity, LowRank
from .mesh import MZI, MZI3
from .monarch import Monarch
from .physics import Physics

__all__ = ["KINDS"]

KINDS: dict[str, type[Physics]] = {
    "matvec": MatVec,
    "slm": SLM,
    "mrr": MRR,
    "mzi": MZI,
    "mzi3": MZI3,
    "monarch": Monarch,
    "lowrank": LowRank,
    "identity": Identity,
    "diffractive": Diffractive,
}
"""Classes of all simulated kinds by name."""
