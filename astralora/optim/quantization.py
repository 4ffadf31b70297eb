"""Store optimizer states unchanged, or in codes of eight bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..common.errors import ConfigurationError

__all__ = ["STORAGES", "Bitsandbytes", "Blockwise", "Plain", "Storage", "choose_storage"]

State = MutableMapping[str, Any]

_BLOCK = 256  # numbers that share a scale


class Storage(ABC):
    """Store named tensors in the state of a parameter, as one or more tensors each.

    A tensor without signs is a second moment. An optimizer divides by its root.
    """

    @abstractmethod
    def get(self, state: Mapping[str, Any], name: str, *, signed: bool) -> Tensor | None:
        """Return a stored tensor in floating point, or None if there is none of this name."""

    @abstractmethod
    def put(self, state: State, name: str, value: Tensor, *, signed: bool) -> None:
        """Store a floating-point tensor of any shape."""


class Plain(Storage):
    """Store tensors unchanged."""

    def get(self, state: Mapping[str, Any], name: str, **_: bool) -> Tensor | None:
        """Return the tensor itself."""
        return state.get(name)

    def put(self, state: State, name: str, value: Tensor, **_: bool) -> None:
        """Store the tensor itself."""
        state[name] = value


class Blockwise(Storage):
    """Store eight bits per number, and one scale per block of 256 numbers (Dettmers et al., arXiv 2110.02861).

    With s the largest magnitude of a block, signed numbers become round(127 x / s), with an error of at most s / 254.
    Second moments become round(255 sqrt(x / s)), with an error of at most sqrt(s) / 510 in the root. Their codes are
    never 0, because an optimizer divides by them: smaller values are rounded up to the smallest code.
    """

    def get(self, state: Mapping[str, Any], name: str, *, signed: bool) -> Tensor | None:
        """Decode a tensor into the precision of its scales."""
        codes = state.get(name)
        if codes is None:
            return None
        scales: Tensor = state[_scales(name)]
        spread = scales.repeat_interleave(_BLOCK)[: codes.numel()].view(codes.shape)
        shares = codes.to(scales)
        values: Tensor = spread * (shares / 127 if signed else (shares / 255).square_())
        return values

    def put(self, state: State, name: str, value: Tensor, *, signed: bool) -> None:
        """Encode a tensor as int8 (signed) or uint8 of the same shape."""
        padded = torch.nn.functional.pad(value.flatten(), (0, -value.numel() % _BLOCK)).view(-1, _BLOCK)
        scales = padded.abs().amax(dim=1)
        shares = padded / scales.clamp(min=torch.finfo(value.dtype).tiny).unsqueeze(1)
        if signed:
            codes = (127 * shares).round_().to(torch.int8)
        else:
            codes = (255 * shares.sqrt_()).round_().clamp_(min=1).to(torch.uint8)
        # A copy frees the padding of the last block.
        state[name] = codes.flatten()[: value.numel()].view(value.shape).clone()
        state[_scales(name)] = scales


class Bitsandbytes(Storage):
    """Store eight bits per number in the non-uniform codes of bitsandbytes, by its kernels; float32 only.

    Second moments are stored as their roots, which never become 0; see `Blockwise`.

    Raises:
        ConfigurationError: bitsandbytes is not installed.
    """

    def __init__(self) -> None:
        try:
            from bitsandbytes import functional
        except ImportError:
            raise ConfigurationError(
                "quantization='bitsandbytes' needs bitsandbytes, which is not installed; pip install it, or pass "
                "quantization=True, which needs no library"
            ) from None
        self._library = functional
        self._levels: dict[bool, Tensor] = {
            signed: functional.create_dynamic_map(signed=signed) for signed in (False, True)
        }

    def get(self, state: Mapping[str, Any], name: str, *, signed: bool) -> Tensor | None:
        """Decode a tensor into float32."""
        codes = state.get(name)
        if codes is None:
            return None
        scales, levels = state[_scales(name)], self._levels[signed].to(codes.device)
        values: Tensor = self._library.dequantize_blockwise(codes, absmax=scales, code=levels, blocksize=_BLOCK)
        if signed:
            return values
        least = levels[levels > 0].min() * scales.repeat_interleave(_BLOCK)[: codes.numel()].view(codes.shape)
        return values.maximum(least).square_()

    def put(self, state: State, name: str, value: Tensor, *, signed: bool) -> None:
        """Encode a tensor as uint8 of the same shape."""
        levels = self._levels[signed].to(value.device)
        values = (value if signed else value.sqrt()).float().contiguous()
        state[name], found = self._library.quantize_blockwise(values, code=levels, blocksize=_BLOCK)
        state[_scales(name)] = found.absmax


STORAGES: dict[bool | str, type[Storage]] = {False: Plain, True: Blockwise, "bitsandbytes": Bitsandbytes}
"""Storage classes by the value of ``quantization``."""


@lru_cache
def choose_storage(quantization: bool | str) -> Storage:
    """Return the storage for a value of ``quantization``.

    Raises:
        ConfigurationError: the value is unknown, or its library is not installed.
    """
    if quantization not in STORAGES:
        raise ConfigurationError(f"quantization must be True, False or 'bitsandbytes', not {quantization!r}")
    return STORAGES[quantization]()


def _scales(name: str) -> str:
    return f"{name}_scales"
