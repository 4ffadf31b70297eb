"""Drivers of real hardware: transports, two wire protocols with their drivers, an emulator, and remote devices.

Nothing here is imported before it is used: a driver is opened by its name, ``astralora.devices.open_device("frame-mvm", ...)``.
"""
