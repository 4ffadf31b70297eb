"""Any device on a real port, as its firmware would serve it."""

from .emulator import Emulator, FrameEmulator, ScpiEmulator

__all__ = ["Emulator", "FrameEmulator", "ScpiEmulator"]
