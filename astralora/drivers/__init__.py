"""Control real hardware: transports, two wire protocols with their drivers, an emulator, and remote devices.

Open a driver by its name: ``astralora.devices.open_device("frame-mvm", ...)``. This imports the driver.
"""
