"""Mistakes in what astralora was asked to do, as against faults of a device."""

__all__ = ["ConfigurationError"]


class ConfigurationError(ValueError):
    """What was asked for cannot be done; the message says why, and what can."""
