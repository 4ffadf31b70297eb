"""Ways of getting d loss / d inputs past a black box."""

from ..table import Table
from .base import MatrixSurrogate, Surrogate
from .exact import Exact
from .measured import Measured
from .online import Online
from .psi import Psi

__all__ = [
    "SURROGATES",
    "Exact",
    "MatrixSurrogate",
    "Measured",
    "Online",
    "Psi",
    "Surrogate",
    "register_surrogate",
]

SURROGATES: Table[Surrogate] = Table("surrogate", Surrogate)
"""Every surrogate by name."""

SURROGATES.add("psi", Psi)
SURROGATES.add("online", Online)
SURROGATES.add("measured", Measured)
SURROGATES.add("exact", Exact)

register_surrogate = SURROGATES.add
