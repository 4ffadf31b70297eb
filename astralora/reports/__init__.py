"""Pictures and pages for people."""

from .plots import RunData
from .run import run_report, verdicts
from .text import duration, percent

__all__ = ["RunData", "duration", "percent", "run_report", "verdicts"]
