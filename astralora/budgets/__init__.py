"""Divide a budget of hardware operations between layers."""

from .allocation import AllocationMode, allocate
from .sample_allocator import SampleAllocator

__all__ = ["AllocationMode", "SampleAllocator", "allocate"]
