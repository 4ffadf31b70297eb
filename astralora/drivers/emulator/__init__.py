"""Serve any device on a real port as its firmware does."""

from .emulator import Emulator, FrameEmulator, ScpiEmulator

__all__ = ["Emulator", "FrameEmulator", "ScpiEmulator"]
