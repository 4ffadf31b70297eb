"""Define the error for wrong options; faults of a device have errors of their own in `astralora.devices`."""

__all__ = ["ConfigurationError"]


class ConfigurationError(ValueError):
    """Report options that cannot work; the message gives the reason and an alternative."""
