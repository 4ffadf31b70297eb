"""Measure the overhead of a session."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch

from ..devices import Session, derive_generator, initial_controls, make_device

__all__ = ["session_overhead"]


def session_overhead(device: str, impairments: str, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Time a query through a session against the same query on the bare device.

    The two are timed alternately, so that other load on the machine affects both.

    Args:
        device: name of a simulated device.
        impairments: preset of the device.
        size: number of inputs, and of outputs.
        batch: vectors per query.
        rounds: pairs of measurements.

    Returns:
        Medians in microseconds, and median and quartiles of the relative overhead over blocks of rounds.
    """
    raw = make_device(device, in_features=size, out_features=size, impairments=impairments)
    session = Session(raw)
    generator = derive_generator(0, "bench")
    inputs = torch.empty(batch, size).uniform_(-1, 1, generator=generator)
    with session:
        session.program(initial_controls(session.spec, generator))
        pairs = np.array([_pair(raw.query, session.query, inputs, i) for i in range(rounds + rounds // 10)])
    pairs = pairs[rounds // 10 :]  # the first tenth warms up
    blocks = [np.median(block[:, 1]) / np.median(block[:, 0]) - 1 for block in np.array_split(pairs, 10)]
    low, middle, high = np.quantile(blocks, [0.25, 0.5, 0.75])
    return {
        "device": device,
        "impairments": impairments,
        "size": size,
        "batch": batch,
        "rounds": rounds,
        "raw_us": 1e6 * float(np.median(pairs[:, 0])),
        "session_us": 1e6 * float(np.median(pairs[:, 1])),
        "overhead": float(middle),
        "overhead_low": float(low),
        "overhead_high": float(high),
    }


def _pair(
    raw: Callable[[torch.Tensor], torch.Tensor],
    session_query: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    turn: int,
) -> tuple[float, float]:
    """Time both queries, in alternating order."""
    calls = (raw, session_query) if turn % 2 else (session_query, raw)
    spans = []
    for call in calls:
        start = perf_counter()
        call(inputs)
        spans.append(perf_counter() - start)
    return (spans[0], spans[1]) if turn % 2 else (spans[1], spans[0])
