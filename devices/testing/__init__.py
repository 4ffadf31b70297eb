"""Testing kit for authors of drivers, and for those who test without a chip.

`DeviceConformance` and `check_device` hold any device to the contract and to its own spec; `MockDevice` answers what a
test has written down. The pytest plugin that comes with astralora has fixtures of both, and of devices with faults and
on emulated ports: see `devices.testing.plugin`.
"""

# What the stub beside this file names is imported when it is used: see the package above.
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
