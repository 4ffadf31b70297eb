"""Draw plots and write reports of runs, checks and calibrations."""

from .calibration import calibration_report
from .check import check_report
from .page import write_report
from .plots import RunData
from .run import run_report, verdicts
from .text import duration, percent

__all__ = [
    "RunData",
    "calibration_report",
    "check_report",
    "duration",
    "percent",
    "run_report",
    "verdicts",
    "write_report",
]
