"""Things to train on from the command line."""

from ..table import Table
from .base import Splits, Task
from .digits import Digits

__all__ = ["TASKS", "Digits", "Splits", "Task"]

TASKS: Table[Task] = Table("task", Task)
"""Every task by name."""

TASKS.add("digits", Digits)
