"""How an optimizer keeps what it remembers: as it is, or in codes of eight bits."""

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

# Numbers that share a scale.
_BLOCK = 256


class Storage(ABC):
    """A way to keep a named tensor in the state of a parameter; all that it leaves there is tensors.

    Numbers without a sign are second moments: an optimizer divides by their roots.
    """

    @abstractmethod
    def get(self, state: Mapping[str, Any], name: str, *, signed: bool) -> Tensor | None:
        """What was put there last, in floating point; None where nothing was."""

    @abstractmethod
    def put(self, state: State, name: str, value: Tensor, *, signed: bool) -> None:
        """Keep a tensor of any shape, floating point."""


class Plain(Storage):
    """Tensors as they are."""

    def get(self, state: Mapping[str, Any], name: str, *, signed: bool) -> Tensor | None:  # noqa: ARG002
        """The tensor itself."""
        return state.get(name)

    def put(self, state: State, name: str, value: Tensor, *, signed: bool) -> None:  # noqa: ARG002
        """Keep the tensor itself."""
        state[name] = value


class Blockwise(Storage):
    """Eight bits a number, and one scale for each 256 of them in a row (Dettmers et al., arXiv 2110.02861).

    With s the largest magnitude of a block, signed numbers become round(127 x / s), off by at most s / 254. Second
    moments become round(255 sqrt(x / s)), off by at most sqrt(s) / 510 in the root. Those never become 0, since a tiny
    second moment would turn into an endless step: what is less than that rounds up to the smallest code.
    """

    def get(self, state: Mapping[str, Any], name: str, *, signed: bool) -> Tensor | None:
        """Decode, into the precision of the scales."""
        codes = state.get(name)
        if codes is None:
            return None
        scales: Tensor = state[_scales(name)]
        spread = scales.repeat_interleave(_BLOCK)[: codes.numel()].view(codes.shape)
        shares = codes.to(scales)
        values: Tensor = spread * (shares / 127 if signed else (shares / 255).square_())
        return values

    def put(self, state: State, name: str, value: Tensor, *, signed: bool) -> None:
        """Encode, as int8 or uint8 of the same shape."""
        padded = torch.nn.functional.pad(value.flatten(), (0, -value.numel() % _BLOCK)).view(-1, _BLOCK)
        scales = padded.abs().amax(dim=1)
        shares = padded / scales.clamp(min=torch.finfo(value.dtype).tiny).unsqueeze(1)
        if signed:
            codes = (127 * shares).round_().to(torch.int8)
        else:
            codes = (255 * shares.sqrt_()).round_().clamp_(min=1).to(torch.uint8)
        # A copy, or the padding of the last block would be kept with it.
        state[name] = codes.flatten()[: value.numel()].view(value.shape).clone()
        state[_scales(name)] = scales


class Bitsandbytes(Storage):
    """Eight bits a number in the non-uniform codes of bitsandbytes, by its kernels; float32 only.

    Second moments are kept as their roots, and those never become 0; see `Blockwise`.
    """

    def __init__(self) -> None:
        try:
            from bitsandbytes import functional
        except ImportError:
            raise ConfigurationError(
                "quantization='bitsandbytes' needs bitsandbytes, which is not installed; pip install it, or pass "
                "quantization=True, which needs nothing"
            ) from None
        self._library = functional
        self._levels: dict[bool, Tensor] = {
            signed: functional.create_dynamic_map(signed=signed) for signed in (False, True)
        }

    def get(self, state: Mapping[str, Any], name: str, *, signed: bool) -> Tensor | None:
        """Decode."""
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
        """Encode, as uint8 of the same shape."""
        levels = self._levels[signed].to(value.device)
        values = (value if signed else value.sqrt()).float().contiguous()
        state[name], found = self._library.quantize_blockwise(values, code=levels, blocksize=_BLOCK)
        state[_scales(name)] = found.absmax


STORAGES: dict[bool | str, type[Storage]] = {False: Plain, True: Blockwise, "bitsandbytes": Bitsandbytes}
"""Ways to keep the state, by what ``quantization`` is."""


@lru_cache
def choose_storage(quantization: bool | str) -> Storage:
    """The storage that ``quantization`` asks for.

    Raises:
        ConfigurationError: there is no such, or its library is not installed.
    """
    if quantization not in STORAGES:
        raise ConfigurationError(f"quantization must be True, False or 'bitsandbytes', not {quantization!r}")
    return STORAGES[quantization]()


def _scales(name: str) -> str:
    return f"{name}_scales"
