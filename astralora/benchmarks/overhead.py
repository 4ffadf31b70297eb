"""How long a training step of a device layer takes here, as a multiple of that of a linear layer."""

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

# Steps of a cycle, at least.
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
    """Forward and backward of a simulated device layer, with new controls in every step, over those of `nn.Linear`.

    Both layers are timed in turn within one process, over whole cycles of eight steps, since methods need not do
    the same in every step. ``"exact"`` runs on a chip without impairments, whatever the others get: what is left is
    astralora itself.

    Args:
        devices: registered names of simulated devices.
        methods: see `parse_method`.
        sizes: inputs, and as many outputs.
        impairments: of the devices.
        batch: vectors a step.
        cycles: as above, after some steps that warm up.
        samples: perturbations a step, for methods that perturb; those are timed over single steps.
        listener: told every record as it comes.

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
            # As an optimizer would; not on the clock, since a linear layer's is not either.
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
