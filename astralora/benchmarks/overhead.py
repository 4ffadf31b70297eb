"""Time a training step of a device layer as a multiple of a step of a linear layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import nn

from ..devices import derive_generator
from ..nn.health import StaleGradientWarning
from ..nn.layer import BlackBoxLinear
from .methods import open_chip, parse_method

__all__ = ["overhead"]

Record = dict[str, Any]

# Smallest number of steps in a cycle.
_CYCLE = 8


def overhead(
    devices: Sequence[str],
    methods: Sequence[str],
    sizes: Sequence[int],
    *,
    impairments: str = "lab",
    batch: int = 256,
    cycles: int = 2,
    samples: int = 100,
    listener: Callable[[Record], None] | None = None,
) -> list[Record]:
    """Time steps of a simulated device layer, with new controls at each step, relative to `nn.Linear`.

    Both layers are timed alternately within one process, over whole cycles of eight steps, since the steps of a method
    may differ. ``"exact"`` always uses a chip without impairments, so that it measures the time of astralora itself.

    Args:
        devices: names of simulated devices.
        methods: names for `parse_method`.
        sizes: number of inputs, and of outputs.
        impairments: preset of the devices.
        batch: vectors per step.
        cycles: number of timed cycles, after some steps to warm up.
        samples: perturbations per step of the published method, which is timed over single steps.
        listener: called with every record.

    Returns:
        Flat records of device, impairments, size, batch, method and ratio_to_linear.
    """
    records = []
    for device in devices:
        for size in sizes:
            for method in methods:
                preset = "ideal" if method == "exact" else impairments
                ratio = _ratio(device, preset, size, method, batch, cycles, samples)
                records.append(
                    {
                        "device": device,
                        "impairments": preset,
                        "size": size,
                        "batch": batch,
                        "method": method,
                        "ratio_to_linear": ratio,
                    }
                )
                if listener is not None:
                    listener(records[-1])
    return records


def _ratio(device: str, impairments: str, size: int, method: str, batch: int, cycles: int, samples: int) -> float:
    """Return the time of a step relative to a step of `nn.Linear`."""
    session, _ = open_chip(device, impairments, (size, size), seed=0)
    options = parse_method(method)
    if method == "paper":
        options["samples"] = samples
    layer = BlackBoxLinear(session, **options)
    with torch.random.fork_rng(devices=[]):
        linear = nn.Linear(size, size)
    generator = derive_generator(0, "bench", "overhead")
    x = torch.empty(batch, size).uniform_(-1, 1, generator=generator).requires_grad_()
    grad = torch.randn(batch, size, generator=generator)
    move = 1e-3 * torch.randn(len(layer.controls), generator=generator)

    def step(module: nn.Module) -> float:
        if module is layer:
            # Change the controls as an optimizer would. Optimizers are not timed for either layer.
            with torch.no_grad():
                layer.controls.add_(move)
        module.zero_grad(set_to_none=True)
        x.grad = None
        start = perf_counter()
        module(x).backward(grad)
        return perf_counter() - start

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaleGradientWarning)
        length = 1 if method == "paper" else max(_CYCLE, layer.estimator.period)
        for module in (layer, linear):
            for _ in range(min(length, _CYCLE)):
                step(module)
        spans = {layer: 0.0, linear: 0.0}
        for turn in range(cycles):
            for module in (layer, linear) if turn % 2 else (linear, layer):
                spans[module] += sum(step(module) for _ in range(length)) / length
    return spans[layer] / spans[linear]
