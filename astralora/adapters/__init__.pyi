"""Choose which low-rank adapters and which device layers get the budget (HeteroLoRA)."""

from .adapted import AdaptedModel, adapt
from .architectures import ARCHITECTURES, Architecture
from .budgets import SampleAllocator, allocate
from .config import AdapterConfig
from .on_devices import put_on_devices
from .proxies import PROXIES, Proxy
from .reallocation import Choice, Reallocation
from .scoring import Scores, TiedScoresWarning, score
from .search import search

__all__ = [
    "ARCHITECTURES",
    "PROXIES",
    "AdaptedModel",
    "AdapterConfig",
    "Architecture",
    "Choice",
    "Proxy",
    "Reallocation",
    "SampleAllocator",
    "Scores",
    "TiedScoresWarning",
    "adapt",
    "allocate",
    "put_on_devices",
    "score",
    "search",
]
