"""Pytest fixtures for tests without a chip and with one.

Each fixture returns a function that makes a device; the devices are closed when the test ends.

    def test_learns(simulated_device):
        session = simulated_device("mrr", in_features=8, out_features=4, impairments="lab")

    def test_sends(mock_device):
        device = mock_device(answers=[[[1.0, 2.0, 3.0]]])

    def test_survives(faulty_device):
        device = faulty_device("mrr", "timeout=0.1,seed=1", in_features=8, out_features=4)

    def test_speaks(emulated_port):
        session = al.open_device("frame-mvm", port=emulated_port("mrr", in_features=8, out_features=4))

    def test_on_the_bench(hardware_device):
        ...  # runs with pytest --astralora-bench bench.toml, and is skipped otherwise

This module imports torch only when a fixture is used: pytest loads it in every project that shares the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .devices.device import Device
    from .devices.session import Session
    from .devices.testing.mock import MockDevice
    from .devices.wrappers.faults import FaultPlan

__all__: list[str] = []

_OPTION = "--astralora-bench"
# A name of its own: a project may have a fixture `hardware_device` of another kind.
_BENCH = "astralora_bench"
_SKIPPED = f"needs hardware: name it with {_OPTION} BENCH.toml"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--astralora-bench BENCH.toml``."""
    parser.getgroup("astralora").addoption(
        _OPTION,
        metavar="BENCH.toml",
        action="append",
        default=[],
        help="run the tests that use hardware_device on the device of this bench file or name; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark ``hardware``, and refuse a bench file or a Python file that cannot be used.

    Other names may be registered later, by the tests themselves.
    """
    for name in config.getoption(_OPTION):
        if name.endswith(".toml") or ".py" in name:
            # Imported here, because this module is loaded in every project.
            from .devices.errors import DeviceError
            from .devices.registry import find_device

            try:
                find_device(name)
            except DeviceError as error:
                raise pytest.UsageError(f"{_OPTION} {name}: {error}") from None
    config.addinivalue_line("markers", f"hardware: uses hardware_device; runs with {_OPTION} BENCH.toml only")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use `hardware_device` with ``hardware``, so that ``-m hardware`` selects them.

    Tests of other projects that carry a mark of that name are left alone.
    """
    for item in items:
        if _BENCH in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.hardware)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses `hardware_device` once on each device that is named."""
    if _BENCH in metafunc.fixturenames:
        named = metafunc.config.getoption(_OPTION)
        metafunc.parametrize(_BENCH, named or [""], indirect=True, ids=str)


@pytest.fixture
def simulated_device() -> Iterator[Callable[..., Session]]:
    """Return a function that opens a device by its registered name and options, behind a session."""
    from .devices.opening import open_device

    opened: list[Session] = []

    def open_one(name: str = "matvec", **options: Any) -> Session:
        opened.append(open_device(name, **{"in_features": 4, "out_features": 3, **options}))
        return opened[-1]

    yield open_one
    for session in reversed(opened):
        session.close()


@pytest.fixture
def mock_device() -> Callable[..., MockDevice]:
    """Return the class `astralora.devices.testing.MockDevice`, whose answers a test scripts."""
    from .devices.testing.mock import MockDevice

    return MockDevice


@pytest.fixture
def faulty_device() -> Iterator[Callable[..., Device]]:
    """Return a function that makes a `FaultyDevice` of a device, or of a registered name, and a plan of faults."""
    from .devices.registry import make_device
    from .devices.wrappers.faults import FaultPlan, FaultyDevice

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
    """Return a function that serves a device, or a registered name with its options, on a real port.

    The function returns the address of the port. Its options are ``protocol``, ``"frames"`` or ``"scpi"``; ``address``,
    ``"pty"`` for a pseudo-terminal or ``"tcp://127.0.0.1:0"``; and ``faults``, a plan.
    """
    from .devices.emulation import Emulates, make_emulator
    from .devices.registry import make_device
    from .devices.wrappers.faults import FaultPlan

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
def astralora_bench(request: pytest.FixtureRequest) -> str:
    """Return one name given with ``--astralora-bench``; skip the test where there is none."""
    if not request.param:
        pytest.skip(_SKIPPED)
    return str(request.param)


@pytest.fixture
def hardware_device(astralora_bench: str) -> Iterator[Session]:
    """Open the device that ``--astralora-bench`` names, behind a session."""
    from .devices.errors import DeviceError
    from .devices.opening import open_device

    try:
        session = open_device(astralora_bench)
    except DeviceError as error:
        pytest.fail(f"{_OPTION} {astralora_bench}: {error}", pytrace=False)
    with session:
        yield session
