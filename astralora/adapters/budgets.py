"""What also serves budgets of hardware, and is therefore not of this room alone."""

from ..budgets.allocation import AllocationMode, allocate
from ..budgets.sample_allocator import SampleAllocator

__all__ = ["AllocationMode", "SampleAllocator", "allocate"]
