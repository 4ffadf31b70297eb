"""Define the tasks that the command line can train."""

from ..common.table import Table
from .base import Splits, Task
from .digits import ConvDigits, DeepDigits, Digits
from .topics import BYTES, Text, sources, topics

__all__ = ["BYTES", "TASKS", "ConvDigits", "DeepDigits", "Digits", "Splits", "Task", "Text", "sources", "topics"]

TASKS: Table[Task] = Table("task", Task)
"""Every task by name."""

TASKS.add("digits", Digits)
TASKS.add("digits-deep", DeepDigits)
TASKS.add("digits-conv", ConvDigits)
