"""Export the allocation of budgets, which adapters and device layers share."""

from ..budgets.allocation import AllocationMode, allocate
from ..budgets.sample_allocator import SampleAllocator

__all__ = ["AllocationMode", "SampleAllocator", "allocate"]
