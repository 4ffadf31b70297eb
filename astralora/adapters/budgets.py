"""Re-export the allocation of budgets, which adapters share with device layers."""

from ..budgets.allocation import AllocationMode, allocate
from ..budgets.sample_allocator import SampleAllocator

__all__ = ["AllocationMode", "SampleAllocator", "allocate"]
