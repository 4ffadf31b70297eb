"""Devices that add one behaviour to another device."""
