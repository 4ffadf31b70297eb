"""Compute a 2-d convolution on a device, one patch of the image after the other."""

from __future__ import annotations

from math import prod
from typing import Any, Literal

from torch import Tensor, nn

from ..common.errors import ConfigurationError
from ..devices import Device
from .layer import BlackBoxLinear

__all__ = ["BlackBoxConv2d"]

_Pair = int | tuple[int, int]
_Padding = Literal["zeros", "reflect", "replicate", "circular"]


class BlackBoxConv2d(BlackBoxLinear):
    """Compute a 2-d convolution on one device, time-multiplexed: every patch of the image is one vector.

    It replaces an `nn.Conv2d` without groups. A step costs one vector for each output pixel in the batch, and as many
    programs as a step of a linear layer.

    Args:
        device: device that computes, with in_features = channels x kernel height x kernel width.
        kernel_size: size of the patches, as for `nn.Conv2d`.
        stride: as for `nn.Conv2d`.
        padding: as for `nn.Conv2d`: a number, a pair, ``"same"`` or ``"valid"``.
        dilation: as for `nn.Conv2d`.
        padding_mode: as for `nn.Conv2d`.
        **options: options of `BlackBoxLinear`.

    Shape:
        (batch, channels, height, width) -> (batch, out_features, height', width'); the batch dimension is optional.
    """

    def __init__(
        self,
        device: Device,
        kernel_size: _Pair,
        *,
        stride: _Pair = 1,
        padding: _Pair | str = 0,
        dilation: _Pair = 1,
        padding_mode: _Padding = "zeros",
        **options: Any,
    ) -> None:
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        self.padding = padding if isinstance(padding, str) else _pair(padding)
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ConfigurationError(f"padding must be a number, a pair, 'same' or 'valid', not {padding!r}")
        if padding == "same" and self.stride != (1, 1):
            raise ConfigurationError(f"padding 'same' needs a stride of 1, not {self.stride}")
        self.padding_mode = padding_mode
        size = prod(self.kernel_size)
        if device.spec.in_features % size:
            raise ConfigurationError(
                f"{device.spec.name!r} has {device.spec.in_features} inputs; this number must be a multiple of "
                f"the {size} pixels of the kernel"
            )
        super().__init__(device, **options)
        self.in_channels = self.in_features // size
        self.out_channels = self.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Compute the convolution: (batch, channels, height, width) -> (batch, out_features, height', width')."""
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ConfigurationError(
                f"the input of the layer on {self.session.spec.name!r} must have shape "
                f"(batch, {self.in_channels}, height, width), but has {tuple(x.shape)}"
            )
        images = x if x.ndim == 4 else x.unsqueeze(0)
        left, right, top, bottom = self._margins()
        if any((left, right, top, bottom)):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            images = nn.functional.pad(images, (left, right, top, bottom), mode=mode)
        height, width = (
            (size - step * (kernel - 1) - 1) // stride + 1
            for size, kernel, step, stride in zip(
                images.shape[-2:], self.kernel_size, self.dilation, self.stride, strict=True
            )
        )
        patches = nn.functional.unfold(images, self.kernel_size, dilation=self.dilation, stride=self.stride)
        y: Tensor = super().forward(patches.mT).mT.unflatten(-1, (height, width))
        return y if x.ndim == 4 else y.squeeze(0)

    def to_digital(self, repeats: int = 1) -> nn.Module:
        """Return a digital convolution that computes the same, with the weights that `measure_weight` measures."""
        conv = nn.utils.skip_init(
            nn.Conv2d,
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
            dtype=self.controls.dtype,
            device=self.controls.device,
        )
        return self._copy_into(conv, self.measure_weight(repeats))

    def extra_repr(self) -> str:
        """Return the text in the brackets of the layer's repr."""
        return (
            f"{super().extra_repr()}, kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}"
        )

    def _margins(self) -> tuple[int, int, int, int]:
        """Return the padding at the left, right, top and bottom."""
        if not isinstance(self.padding, str):
            down, across = self.padding
            return across, across, down, down
        if self.padding == "valid":
            return 0, 0, 0, 0
        down, across = (step * (size - 1) for step, size in zip(self.dilation, self.kernel_size, strict=True))
        return across // 2, across - across // 2, down // 2, down - down // 2


def _pair(value: _Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
