"""What also serves budgets of hardware, and is therefore not of this room alone."""

from ..allocation import AllocationMode, allocate
from ..sample_allocator import SampleAllocator

__all__ = ["AllocationMode", "SampleAllocator", "allocate"]
