"""Test the driver against a simulated chip on a real port; with --astralora-bench bench.toml, against the chip."""

import signal
import threading
from collections.abc import Callable, Generator

import pytest
import torch
from bench_chip import BenchChip
from chip_on_tcp import Chip, chip_on_tcp

import astralora as al
from astralora.devices.testing import DeviceConformance

CONTROLS, ONES = torch.full((64,), 2.5), torch.ones(1, 8)
ANSWER, STEP = torch.full((1, 8), 4.0), 8 * 5 / 4095 / 2


@pytest.fixture
def chip() -> Generator[Chip]:
    with chip_on_tcp() as chip:
        yield chip


@pytest.fixture
def session(chip: Chip) -> Generator[al.Session]:
    with al.open_device("bench-chip", port=chip.address, timeout=0.3) as session:
        session.program(CONTROLS)
        yield session


@pytest.fixture
def interrupt() -> Generator[Callable[[], None]]:
    """Return a function that interrupts the main thread, as Ctrl-C does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    main = threading.main_thread().ident
    assert main is not None
    yield lambda: signal.pthread_kill(main, signal.SIGINT)
    signal.signal(signal.SIGINT, before)


class TestBenchChip(DeviceConformance):
    """Run every check of the testing kit."""

    @pytest.fixture(autouse=True)
    def serve(self, chip: Chip) -> None:
        self.port = chip.address

    def make_device(self) -> BenchChip:
        return BenchChip(self.port, timeout=0.5)


def test_the_device_is_found_by_its_name(session: al.Session) -> None:
    assert torch.allclose(session.query(ONES), ANSWER, atol=STEP)


def test_an_error_of_the_chip_is_raised(chip: Chip) -> None:
    device = BenchChip(chip.address)
    device.open()
    with pytest.raises(al.ProtocolError, match=r"the answer to 'nonsense' is 'ERR what\?'; it must be 'OK'"):
        device.line.command("nonsense")
    device.close()


@pytest.mark.parametrize("wrong", ["", "1 2 3", "1 2 3 4 5 6 7 eight", "ERR what?"])
def test_an_answer_that_is_not_eight_numbers_is_asked_for_again(session: al.Session, chip: Chip, wrong: str) -> None:
    chip.wrong = wrong
    assert torch.allclose(session.query(ONES), ANSWER, atol=STEP)
    assert session.usage.retries == 1


def test_a_late_answer_is_not_taken_for_the_next_one(session: al.Session, chip: Chip) -> None:
    chip.late = 0.35
    assert torch.allclose(session.query(0.5 * ONES), 0.5 * ANSWER, atol=STEP)
    assert torch.allclose(session.query(ONES), ANSWER, atol=STEP)


def test_the_answer_to_an_interrupted_query_is_not_taken_for_the_next_one(
    session: al.Session, chip: Chip, interrupt: Callable[[], None]
) -> None:
    chip.late, chip.meanwhile = 0.2, interrupt
    with pytest.raises(KeyboardInterrupt):
        session.query(0.5 * ONES)
    session.program(CONTROLS)
    assert torch.allclose(session.query(ONES), ANSWER, atol=STEP)


def test_the_heaters_are_off_after_an_interruption(chip: Chip, interrupt: Callable[[], None]) -> None:
    chip.late, chip.meanwhile = 0.2, interrupt
    with pytest.raises(KeyboardInterrupt), al.open_device("bench-chip", port=chip.address) as session:
        session.apply(CONTROLS, ONES)
    assert chip.newest == "S"
    assert not chip.volts.any()


def test_the_driver_comes_back_when_the_chip_does() -> None:
    with chip_on_tcp() as chip:
        session = al.open_device("bench-chip", port=chip.address, timeout=0.3)
        session.program(CONTROLS)
    with pytest.raises(al.NotConnected):
        session.query(ONES)
    with chip_on_tcp(port=int(chip.address.rpartition(":")[2])), session:
        session.program(CONTROLS)
        assert torch.allclose(session.query(ONES), ANSWER, atol=STEP)


@pytest.mark.hardware
def test_the_chip_accepts_a_program(hardware_device: al.Session) -> None:
    hardware_device.program(torch.zeros(64))
    assert hardware_device.query(torch.zeros(1, 8)).abs().max() < 0.1
