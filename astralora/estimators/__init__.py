"""Ways of getting d loss / d controls out of a black box."""

from ..table import Table
from .base import Estimator
from .elementwise import Elementwise
from .exact import Exact
from .zero_order import Gaussian, Output

__all__ = [
    "ESTIMATORS",
    "Elementwise",
    "Estimator",
    "Exact",
    "Gaussian",
    "Output",
    "register_estimator",
]

ESTIMATORS: Table[Estimator] = Table("estimator", Estimator)
"""Every estimator by name."""

ESTIMATORS.add("gaussian", Gaussian)
ESTIMATORS.add("elementwise", Elementwise)
ESTIMATORS.add("output", Output)
ESTIMATORS.add("exact", Exact)

register_estimator = ESTIMATORS.add
