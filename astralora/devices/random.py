"""Derive independent random streams, one for each object; astralora never uses the global generator."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["derive_generator", "derive_seed"]


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Return an independent 63-bit seed for every purpose.

    The seed is a hash, not an offset, so that the streams of neighbouring seeds do not overlap.
    """
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def derive_generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded for one purpose; see `derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))
