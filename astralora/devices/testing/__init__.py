"""Testing kit for authors of drivers, and for those who test without a chip.

`DeviceConformance` and `check_device` hold any device to the contract and to its own spec; `MockDevice` answers what a
test has written down. The pytest plugin that comes with astralora has fixtures of both, and of devices with faults and
on emulated ports: see `astralora.pytest_plugin`.
"""

from .conformance import CHECKS, CheckResult, DeviceConformance, check_device
from .mock import MockDevice

__all__ = ["CHECKS", "CheckResult", "DeviceConformance", "MockDevice", "check_device"]
