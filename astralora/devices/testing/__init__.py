"""Test drivers, and test other code without a chip.

`DeviceConformance` and `check_device` verify that a device follows the `Device` interface and its own spec.
`MockDevice` returns answers that a test has scripted. The pytest plugin `astralora.pytest_plugin` provides fixtures for
both, for devices with faults, and for emulated ports.
"""

from .conformance import CHECKS, CheckResult, DeviceConformance, check_device
from .mock import MockDevice

__all__ = ["CHECKS", "CheckResult", "DeviceConformance", "MockDevice", "check_device"]
