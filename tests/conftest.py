"""Devices that tests are made of."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import astralora.devices as d
from astralora.simulators import KINDS, device_factory

# The workers of a parallel run share the cores already; processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


class Matrix(d.HardwareDevice):
    """A driver as a lab would write it: y = scale * W x, with a log of what reached it."""

    def __init__(self, in_features: int = 4, out_features: int = 3, **spec: Any) -> None:
        options: dict[str, Any] = {
            "name": "bench",
            "num_controls": in_features * out_features,
            "input_range": (-1.0, 1.0),
            "control_range": (-2.0, 2.0),
            "control_unit": "V",
            "linear": True,
            "coupling": "elementwise",
            "program_seconds": 0.5,
            "vector_seconds": 0.001,
            **spec,
        }
        super().__init__(d.DeviceSpec(in_features=in_features, out_features=out_features, **options))
        self.log: list[str] = []
        self.weights: NDArray[Any] | None = None

    def _open(self) -> None:
        self.log.append("open")

    def _close(self) -> None:
        self.log.append("close")

    def _program(self, controls: NDArray[Any]) -> None:
        self.log.append("program")
        self.weights = np.array(controls).reshape(self.spec.out_features, self.spec.in_features)

    def _query(self, inputs: NDArray[Any]) -> NDArray[Any]:
        self.log.append(f"query {len(inputs)}")
        assert self.weights is not None
        answers: NDArray[Any] = inputs @ self.weights.T
        return answers


@pytest.fixture
def bench() -> Matrix:
    return Matrix()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1234)


def make(kind: str, in_features: int, out_features: int, **options: Any) -> d.Session:
    """Open a session on a simulated device."""
    physics = options.pop("physics", {})
    session = d.Session(device_factory(KINDS[kind])(in_features, out_features, **options, **physics))
    session.open()
    return session


@pytest.fixture
def simulated() -> Any:
    return make


@pytest.fixture
def matrix_device() -> type[Matrix]:
    return Matrix


@pytest.fixture(autouse=True)
def global_random_state_is_left_alone() -> Any:
    """No test, and so nothing that tests call, may touch the global generator."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture
def a_throwaway_global_random_state(global_random_state_is_left_alone: Any) -> Any:
    """For code of users, who may draw from it as they like."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
