"""Test the driver against a simulated chip on a real port; with --astralora-bench bench.toml, against the chip."""

from collections.abc import Generator

import pytest
import torch
from bench_chip import BenchChip
from chip_on_tcp import chip_on_tcp

import astralora as al
from astralora.devices.testing import DeviceConformance


@pytest.fixture
def port() -> Generator[str]:
    with chip_on_tcp() as address:
        yield address


class TestBenchChip(DeviceConformance):
    """Run every check of the testing kit."""

    @pytest.fixture(autouse=True)
    def serve(self, port: str) -> None:
        self.port = port

    def make_device(self) -> BenchChip:
        return BenchChip(self.port, timeout=0.5)


def test_the_device_is_found_by_its_name(port: str) -> None:
    with al.open_device("bench-chip", port=port) as session:
        answer = session.apply(torch.full((64,), 2.5), torch.ones(1, 8))
    assert torch.allclose(answer, torch.full((1, 8), 4.0), atol=8 * 5 / 4095 / 2)


def test_an_error_of_the_chip_is_raised(port: str) -> None:
    device = BenchChip(port)
    device.open()
    with pytest.raises(al.ProtocolError, match="the chip answered 'ERR what\\?'"):
        device._ask("nonsense")
    device.close()


@pytest.mark.hardware
def test_the_chip_accepts_a_program(hardware_device: al.Session) -> None:
    hardware_device.program(torch.zeros(64))
    assert hardware_device.query(torch.zeros(1, 8)).abs().max() < 0.1
