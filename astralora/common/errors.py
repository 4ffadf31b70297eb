"""Define the error for wrong options; `astralora.devices` defines the errors of devices."""

__all__ = ["ConfigurationError"]


class ConfigurationError(ValueError):
    """Report options that are not valid; the message gives the reason and an alternative."""
