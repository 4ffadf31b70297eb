"""Compute d loss / d inputs of a device by a model of the device or by measurements."""

from ..common.table import Table
from .adjoint import Adjoint
from .base import MatrixSurrogate, Surrogate
from .low_rank import LowRankOnline
from .measured import Measured
from .online import Online
from .psi import Psi
from .twin import Exact, Twin
from .twin_drift import StaleCalibrationWarning, TwinDrift

__all__ = [
    "SURROGATES",
    "Adjoint",
    "Exact",
    "LowRankOnline",
    "MatrixSurrogate",
    "Measured",
    "Online",
    "Psi",
    "StaleCalibrationWarning",
    "Surrogate",
    "Twin",
    "TwinDrift",
    "register_surrogate",
]

SURROGATES: Table[Surrogate] = Table("surrogate", Surrogate)
"""All surrogates by name."""

SURROGATES.add("psi", Psi)
SURROGATES.add("online", Online)
SURROGATES.add("online_low_rank", LowRankOnline)
SURROGATES.add("measured", Measured)
SURROGATES.add("adjoint", Adjoint)
SURROGATES.add("twin", Twin)
SURROGATES.add("exact", Exact)

register_surrogate = SURROGATES.add
