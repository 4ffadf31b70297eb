"""Time simulated devices as a multiple of a digital layer of the same size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from ..devices import Differentiable, Session, derive_generator, initial_controls, make_device, pull_back

__all__ = ["simulators"]

Record = dict[str, Any]


def simulators(
    devices: Sequence[str],
    sizes: Sequence[int],
    *,
    impairments: str = "lab",
    batch: int = 256,
    repeats: int = 30,
    listener: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Time a simulated device against `nn.Linear`, forward and backward.

    A pass queries the device with a batch, with all impairments, and computes the gradients of controls and inputs from
    its law. Passes are timed with and without a program of new controls first. Passes of device and digital layer
    alternate in one process.

    Args:
        devices: names of devices with a law.
        sizes: number of inputs, and of outputs.
        impairments: preset of the simulated devices.
        batch: vectors per pass.
        repeats: number of passes, of which the median is taken.
        listener: called with every record.

    Returns:
        Flat records with device, impairments, size and batch; seconds (without a program), with_program and
        linear_seconds; ``multiple`` and ``multiple_with_program``, relative to `nn.Linear` of the same size;
        ``multiple_of_256`` and ``multiple_of_256_with_program``, relative to an `nn.Linear` of 256 x 256.
    """
    records = []
    widest = _Digital(256, batch)
    for size in sizes:
        digital = widest if size == 256 else _Digital(size, batch)
        for name in devices:
            simulated = _Simulated(name, impairments, size, batch)
            passes: list[Callable[[], None]] = [simulated, simulated.programmed, digital]
            if digital is not widest:
                passes.append(widest)
            seconds, programmed, linear, *others = _medians(passes, repeats)
            wide = others[0] if others else linear
            records.append(
                {
                    "device": name,
                    "impairments": impairments,
                    "size": size,
                    "batch": batch,
                    "seconds": seconds,
                    "with_program": programmed,
                    "linear_seconds": linear,
                    "multiple": seconds / linear,
                    "multiple_with_program": programmed / linear,
                    "multiple_of_256": seconds / wide,
                    "multiple_of_256_with_program": programmed / wide,
                }
            )
            if listener is not None:
                listener(records[-1])
    return records


class _Digital:
    """Run a pass of the digital layer."""

    def __init__(self, size: int, batch: int) -> None:
        generator = derive_generator(0, "bench")
        self._layer = nn.utils.skip_init(nn.Linear, size, size)
        with torch.no_grad():
            self._layer.weight.normal_(std=size**-0.5, generator=generator)
            assert self._layer.bias is not None
            self._layer.bias.zero_()
        self._inputs = torch.rand(batch, size, generator=generator).requires_grad_()
        self._grad = torch.randn(batch, size, generator=generator)

    def __call__(self) -> None:
        torch.autograd.backward(self._layer(self._inputs), self._grad)


class _Simulated:
    """Run a pass of a simulated device: a query, and the gradients of its law."""

    def __init__(self, name: str, impairments: str, size: int, batch: int) -> None:
        device = make_device(name, in_features=size, out_features=size, impairments=impairments)
        self._session = Session(device)
        law = self._session.capability(Differentiable)
        assert law is not None
        self._law = law
        self._session.open()
        generator = derive_generator(0, "bench")
        self._controls = [initial_controls(device.spec, generator) for _ in range(2)]
        low, high = device.spec.input_range or (-1.0, 1.0)
        self._inputs = low + (high - low) * torch.rand(batch, size, generator=generator)
        self._grad: Tensor = torch.randn(batch, size, generator=generator)

        self._session.program(self._controls[0])

    def __call__(self) -> None:
        self._session.query(self._inputs)
        pull_back(self._law, self._controls[0], self._inputs, self._grad)

    def programmed(self) -> None:
        """Program the other one of two settings, and run a pass."""
        self._controls.reverse()
        self._session.program(self._controls[0])
        self()


def _medians(passes: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Return the median times of several passes, which alternate so that other load affects all of them."""
    # Until a block of this size has been freed once, the C library returns memory to the system after every pass, which
    # costs time. In a training this has happened long before.
    torch.ones(1 << 22)
    times: list[list[float]] = [[] for _ in passes]
    for turn in range(repeats + 5):
        for place, work in enumerate(passes):
            start = perf_counter()
            work()
            if turn >= 5:  # the first passes have empty caches
                times[place].append(perf_counter() - start)
    return [median(each) for each in times]
