"""Finding out what a chip is really like: system identification, and the records of it."""

from .calibrate import calibrate, calibration_design

__all__ = ["calibrate", "calibration_design"]
