"""Calibrate chips: identify the constants of a chip's law, and record them."""

from .calibrate import calibrate, calibration_design

__all__ = ["calibrate", "calibration_design"]
