"""Estimate d loss / d controls by operating a device, or through a model of it."""

from ..common.table import Table
from .base import Estimator
from .coloured import Coloured
from .directions import Coordinate, Gaussian, Orthogonal, Output, Rademacher
from .elementwise import Elementwise
from .steps import StepChoice
from .twin import Exact, Twin

__all__ = [
    "ESTIMATORS",
    "Coloured",
    "Coordinate",
    "Elementwise",
    "Estimator",
    "Exact",
    "Gaussian",
    "Orthogonal",
    "Output",
    "Rademacher",
    "StepChoice",
    "Twin",
    "register_estimator",
]

ESTIMATORS: Table[Estimator] = Table("estimator", Estimator)
"""All estimators by name."""

ESTIMATORS.add("gaussian", Gaussian)
ESTIMATORS.add("rademacher", Rademacher)
ESTIMATORS.add("orthogonal", Orthogonal)
ESTIMATORS.add("coordinate", Coordinate)
ESTIMATORS.add("output", Output)
ESTIMATORS.add("coloured", Coloured)
ESTIMATORS.add("elementwise", Elementwise)
ESTIMATORS.add("twin", Twin)
ESTIMATORS.add("exact", Exact)

register_estimator = ESTIMATORS.add
