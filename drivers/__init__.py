"""Drivers of real hardware live here: transports, wire protocols, and the devices on top of them.

A driver is a `devices.HardwareDevice` with four methods, registered under the entry-point group
``astralora.devices``. This room imports `devices` and nothing else of astralora.
"""
