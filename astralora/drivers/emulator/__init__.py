"""Emulate the firmware of any device on a real port."""

from .emulator import Emulator, FrameEmulator, ScpiEmulator

__all__ = ["Emulator", "FrameEmulator", "ScpiEmulator"]
