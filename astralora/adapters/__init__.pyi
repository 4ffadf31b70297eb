"""HeteroLoRA: which low-rank adapters, and which device layers, deserve the budget."""

from .adapted import AdaptedModel, adapt
from .budgets import SampleAllocator, allocate
from .config import AdapterConfig

__all__ = ["AdaptedModel", "AdapterConfig", "SampleAllocator", "adapt", "allocate"]
