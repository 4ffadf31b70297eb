"""Driver of our chip: a crossbar of 8 x 8 heaters behind a serial port, which takes lines of text."""

from .driver import BenchChip

__all__ = ["BenchChip"]
