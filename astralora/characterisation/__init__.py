"""Measure the properties of a device without knowing its law."""

from .characterise import MEASUREMENTS, characterisation_cost, characterise
from .findings import Characterisation, Finding

__all__ = ["MEASUREMENTS", "Characterisation", "Finding", "characterisation_cost", "characterise"]
