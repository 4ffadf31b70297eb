"""Drive our chip: a crossbar of 8 x 8 heaters behind a serial port, which accepts lines of text."""

from .driver import BenchChip

__all__ = ["BenchChip"]
