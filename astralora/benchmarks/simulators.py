"""What simulating a device costs, as a multiple of the digital layer of the same size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from devices import Differentiable, Session, derive_generator, initial_controls, make_device

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
    """Time programming, asking and differentiating a simulated device beside `nn.Linear`, forward and backward.

    One pass programs new controls, asks for a batch through all impairments, and backpropagates through the device's
    own law into controls and inputs. Digital passes are timed in turns with those of the device, in the same process.

    Args:
        devices: registered names of devices with a law.
        sizes: inputs, and as many outputs.
        impairments: of the simulated devices.
        batch: vectors.
        repeats: passes; the median counts.
        listener: told every record as it comes.

    Returns:
        Flat records of device, impairments, size, batch, seconds, linear_seconds and multiple; and of
        ``multiple_of_256``, which compares with `nn.Linear` of 256 x 256 whatever the size.
    """
    records = []
    widest = _Digital(256, batch)
    for size in sizes:
        digital = widest if size == 256 else _Digital(size, batch)
        for name in devices:
            simulated = _Simulated(name, impairments, size, batch)
            seconds, linear, wide = _medians([simulated, digital, widest], repeats)
            records.append(
                {
                    "device": name,
                    "impairments": impairments,
                    "size": size,
                    "batch": batch,
                    "seconds": seconds,
                    "linear_seconds": linear,
                    "multiple": seconds / linear,
                    "multiple_of_256": seconds / wide,
                }
            )
            if listener is not None:
                listener(records[-1])
    return records


class _Digital:
    """One pass of the digital layer."""

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
    """One pass of a simulated device: program, query, and gradients of its law."""

    def __init__(self, name: str, impairments: str, size: int, batch: int) -> None:
        device = make_device(name, in_features=size, out_features=size, impairments=impairments)
        self._session = Session(device)
        law = self._session.capability(Differentiable)
        assert law is not None
        self._law = law
        self._session.open()
        generator = derive_generator(0, "bench")
        self._controls = [initial_controls(device.spec, generator).requires_grad_() for _ in range(2)]
        low, high = device.spec.input_range or (-1.0, 1.0)
        self._inputs = (low + (high - low) * torch.rand(batch, size, generator=generator)).requires_grad_()
        self._grad: Tensor = torch.randn(batch, size, generator=generator)

    def __call__(self) -> None:
        self._controls.reverse()
        self._session.apply(self._controls[0], self._inputs)
        answer = self._law.transfer(self._controls[0], self._inputs)
        torch.autograd.backward(answer, self._grad)


def _medians(passes: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Median times of several passes, taken in turns so that a busy moment hits all alike."""
    times: list[list[float]] = [[] for _ in passes]
    for turn in range(repeats + 5):
        for place, work in enumerate(passes):
            start = perf_counter()
            work()
            if turn >= 5:  # the first ones find caches empty
                times[place].append(perf_counter() - start)
    return [median(each) for each in times]
