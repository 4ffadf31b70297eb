"""Train in orthogonal bases that settle early (OIALR), and detect that bases have settled."""

from .bases import BasisWatch, basis_overlap, kept_rank
from .controller import Refresh, RefreshController
from .moments import RotatesMoments
from .oialr import OIALR, Size

__all__ = [
    "OIALR",
    "BasisWatch",
    "Refresh",
    "RefreshController",
    "RotatesMoments",
    "Size",
    "basis_overlap",
    "kept_rank",
]
