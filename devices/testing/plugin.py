"""The pytest plugin: fixtures for testing without a chip, and with one.

Each fixture is a function that makes as many devices as a test wants, and closes them when it ends.

    def test_learns(simulated_device):
        session = simulated_device("mrr", in_features=8, out_features=4, impairments="lab")

    def test_sends(mock_device):
        device = mock_device(answers=[[[1.0, 2.0, 3.0]]])

    def test_survives(faulty_device, simulated_device):
        device = faulty_device("mrr", "timeout=0.1,seed=1", in_features=8, out_features=4)

    def test_speaks(emulated_port):
        session = al.open_device("frame-mvm", port=emulated_port("mrr", in_features=8, out_features=4))

    @pytest.mark.hardware
    def test_on_the_bench(hardware_device):
        ...  # runs with pytest --device bench.toml, and is skipped otherwise
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..device import Device
    from ..faults import FaultPlan
    from ..session import Session
    from .mock import MockDevice

__all__: list[str] = []

_OPTION = "--device"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--device BENCH.toml``."""
    parser.getgroup("astralora").addoption(
        _OPTION,
        metavar="BENCH.toml",
        action="append",
        default=[],
        help="run tests marked 'hardware' on the device of this bench file, or of this name; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", "hardware: needs a real device; runs with --device BENCH.toml only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs hardware where none is named."""
    if not config.getoption(_OPTION):
        skip = pytest.mark.skip(reason="needs hardware: name it with --device BENCH.toml")
        for item in items:
            if "hardware" in item.keywords:
                item.add_marker(skip)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a hardware device on each that is named."""
    if "hardware_device" in metafunc.fixturenames:
        named = metafunc.config.getoption(_OPTION)
        metafunc.parametrize("hardware_device", named or [""], indirect=True, ids=str)


@pytest.fixture
def simulated_device() -> Iterator[Callable[..., Session]]:
    """A function of a registered name and its options that opens the device behind a session."""
    from ..opening import open_device

    opened: list[Session] = []

    def open_one(name: str = "matvec", **options: Any) -> Session:
        opened.append(open_device(name, **{"in_features": 4, "out_features": 3, **options}))
        return opened[-1]

    yield open_one
    for session in reversed(opened):
        session.close()


@pytest.fixture
def mock_device() -> Callable[..., MockDevice]:
    """A function of a script that makes a `devices.testing.MockDevice`."""
    from .mock import MockDevice

    return MockDevice


@pytest.fixture
def faulty_device() -> Iterator[Callable[..., Device]]:
    """A function of a device, or a registered name and its options, and a plan: makes a `devices.FaultyDevice`."""
    from ..faults import FaultPlan, FaultyDevice
    from ..registry import make_device

    made: list[Device] = []

    def make_one(device: Device | str, plan: FaultPlan | str, **options: Any) -> Device:
        good = make_device(device, **options) if isinstance(device, str) else device
        made.append(FaultyDevice(good, FaultPlan.parse(plan) if isinstance(plan, str) else plan))
        return made[-1]

    yield make_one
    for device in reversed(made):
        device.close()


@pytest.fixture
def emulated_port() -> Iterator[Callable[..., str]]:
    """A function that serves a device, or a registered name with its options, on a real port, and returns its address.

    ``protocol`` is ``"frames"`` or ``"scpi"``, ``address`` a pseudo-terminal (``"pty"``) or ``"tcp://127.0.0.1:0"``,
    ``faults`` a plan.
    """
    from ..emulation import Emulates, make_emulator
    from ..faults import FaultPlan
    from ..registry import make_device

    started: list[Emulates] = []

    def start(
        device: Device | str = "matvec",
        *,
        protocol: str = "frames",
        address: str = "tcp://127.0.0.1:0",
        faults: FaultPlan | str | None = None,
        **options: Any,
    ) -> str:
        served = (
            make_device(device, **{"in_features": 4, "out_features": 3, **options})
            if isinstance(device, str)
            else device
        )
        plan = FaultPlan.parse(faults) if isinstance(faults, str) else faults
        started.append(make_emulator(protocol, served, address, faults=plan).start())
        return started[-1].uri

    yield start
    for emulator in reversed(started):
        emulator.stop()


@pytest.fixture
def hardware_device(request: pytest.FixtureRequest) -> Iterator[Session]:
    """The device that ``--device`` names, open behind a session."""
    if not request.param:
        pytest.skip("needs hardware: name it with --device BENCH.toml")
    from ..opening import open_device

    with open_device(request.param) as session:
        yield session
