"""Test that a chip becomes safe when its host is gone, and keeps its controls while the host computes."""

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import astralora.devices as d
from astralora.devices import DeviceError, DeviceTimeout, NotConnected, ProtocolError, Session
from astralora.drivers.emulator import FrameEmulator, ScpiEmulator
from astralora.drivers.frame_mvm import open_frame_mvm
from astralora.drivers.messages import Option
from astralora.drivers.scpi_mvm import open_scpi_mvm
from astralora.drivers.scpi_server import ScpiServer
from astralora.drivers.transports import open_transport
from astralora.drivers.transports.base import Bytes
from astralora.drivers.watchdog import Watchdog, check_watchdog, milliseconds_of, seconds_of

from ..children import start

N, M = 4, 3
EMULATORS: dict[str, Any] = {"frames": FrameEmulator, "scpi": ScpiEmulator}
OPEN: dict[str, Any] = {"frames": open_frame_mvm, "scpi": open_scpi_mvm}
# A busy machine may take this long, in seconds, for what takes milliseconds.
PATIENCE = 30.0


class Chip(d.HardwareDevice):
    """Record what happens to a chip."""

    def __init__(self, **spec: Any) -> None:
        options: dict[str, Any] = {"idempotent_program": True, "linear": True, "coupling": "elementwise", **spec}
        super().__init__(d.DeviceSpec(name="chip", in_features=N, out_features=M, num_controls=N * M, **options))
        self.is_on = False
        self.programs = 0

    def _open(self) -> None: ...

    def _close(self) -> None:
        self.is_on = False

    def _program(self, controls: Any) -> None:
        self.is_on, self.programs, self.weights = True, self.programs + 1, controls.reshape(M, N).copy()

    def _query(self, inputs: Any) -> Any:
        return inputs @ self.weights.T


def until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.fixture(params=EMULATORS)
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def chip() -> Chip:
    return Chip()


@contextmanager
def served(protocol: str, chip: d.Device, address: str = "tcp://127.0.0.1:0") -> Iterator[str]:
    with EMULATORS[protocol](chip, address) as emulator:
        yield emulator.uri


def beats() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("astralora watchdog")]


# -- the host computes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["pty", *(pytest.param(each, marks=pytest.mark.campaign) for each in ("tcp://127.0.0.1:0", "loop://watchdog"))],
)
def test_a_host_that_computes_keeps_its_controls(protocol: str, chip: Chip, address: str) -> None:
    with served(protocol, chip, address) as port:
        device = OPEN[protocol](port, watchdog=1.0)
        with Session(device) as session:
            controls, inputs = torch.linspace(-1, 1, N * M), torch.linspace(0, 1, 2 * N).view(2, N)
            answer = session.apply(controls, inputs)
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                assert chip.is_on
                time.sleep(0.01)
            assert torch.equal(session.query(inputs), answer)
            assert session.usage.retries == 0
            assert chip.programs == 1
        assert not chip.is_on
    assert beats() == []


def test_requests_replace_beats(protocol: str, chip: Chip, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(protocol, chip) as port:
        device = OPEN[protocol](port, watchdog=0.6)
        with Session(device) as session:
            session.program(torch.zeros(N * M))
            sent: list[bytes] = []
            write = device.transport.write

            def record(*parts: Bytes) -> None:
                sent.append(b"".join(parts))
                write(*parts)

            monkeypatch.setattr(device.transport, "write", record)
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                session.query(torch.zeros(1, N))
            own = [data for data in sent if data[3:4] == b"\x08" or b"WATC" in data]
            # A busy machine may pause between two queries.
            assert len(own) < len(sent) / 10
            assert not session.usage.retries


def test_beats_never_interleave_with_operations(protocol: str, chip: Chip) -> None:
    with served(protocol, chip) as port:
        device = OPEN[protocol](port, watchdog=0.3)
        device.open()
        generator = torch.Generator().manual_seed(1)
        stop = threading.Event()

        def beat() -> None:
            # Far more often than a device needs it, so that beats and operations meet.
            while not stop.is_set():
                vars(device)["_heartbeat"].beat_now()

        thread = threading.Thread(target=beat)
        thread.start()
        for _ in range(30):
            controls = 2 * torch.rand(N * M, generator=generator)
            inputs = torch.rand(3, N, generator=generator)
            device.program(controls)
            assert torch.allclose(device.query(inputs), inputs @ controls.view(M, N).T)
        stop.set()
        thread.join()
        device.close()


# -- the host is gone ------------------------------------------------------------------------------

HOST = """
import sys, time, torch
import astralora.devices as d
device = d.make_device(sys.argv[1], port=sys.argv[2], watchdog=float(sys.argv[3]))
device.open()
controls = torch.arange(12.0) / 12
device.program(controls)
with d.Session(device) as session:
    for line in sys.stdin:
        inputs = torch.eye(4)
        answer = session.apply(controls, inputs)
        assert torch.allclose(answer, inputs @ controls.view(3, 4).T)
        print("answered", session.usage.retries, flush=True)
"""


@contextmanager
def host(protocol: str, port: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Run a host in another process, which answers every line with the number of its retries."""
    driver = EMULATORS[protocol].driver
    command = [sys.executable, "-c", HOST, driver, port, str(seconds)]
    with start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("?\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
@pytest.mark.parametrize(
    ("protocol", "address"), [("frames", "pty"), pytest.param("scpi", "tcp://127.0.0.1:0", marks=pytest.mark.campaign)]
)
def test_a_chip_is_safe_after_its_host_was_stopped_or_killed(protocol: str, chip: Chip, address: str) -> None:
    with served(protocol, chip, address) as port, host(protocol, port, 1.0) as process:
        assert ask(process) == "answered 0"
        # Several times of the watchdog, in which the host waits for its input.
        time.sleep(2.5)
        assert chip.is_on
        process.send_signal(signal.SIGSTOP)
        assert until(lambda: not chip.is_on)
        process.send_signal(signal.SIGCONT)
        # The session programs the chip again, and goes on.
        programs = chip.programs
        assert ask(process) == "answered 1"
        assert chip.is_on
        assert chip.programs > programs
        # It is guarded again.
        time.sleep(1.5)
        assert chip.is_on
        killed = time.monotonic()
        process.kill()
        assert until(lambda: not chip.is_on)
        assert time.monotonic() - killed < PATIENCE / 2


def test_a_host_without_a_watchdog_leaves_the_chip_on(protocol: str, chip: Chip) -> None:
    with served(protocol, chip) as port:
        device = OPEN[protocol](port)
        device.open()
        device.program(torch.zeros(N * M))
        device.transport.close()  # as a process that is killed
        time.sleep(0.5)
        assert chip.is_on
        assert beats() == []


def test_a_new_connection_does_not_stop_the_watchdog(protocol: str, chip: Chip) -> None:
    with served(protocol, chip) as port:
        device = OPEN[protocol](port, watchdog=0.5)
        device.open()
        device.program(torch.zeros(N * M))
        vars(device)["_heartbeat"].stop()
        device.transport.close()
        with open_transport(port):
            assert until(lambda: not chip.is_on)


def test_a_driver_without_a_watchdog_turns_off_that_of_an_earlier_host(protocol: str, chip: Chip) -> None:
    with served(protocol, chip) as port:
        first = OPEN[protocol](port, watchdog=0.5)
        first.open()
        vars(first)["_heartbeat"].stop()
        first.transport.close()
        with Session(OPEN[protocol](port)) as session:
            session.program(torch.zeros(N * M))
            time.sleep(1.0)
            assert chip.is_on


@pytest.mark.parametrize("idempotent", [True, False])
def test_after_the_watchdog_no_controls_are_set(protocol: str, idempotent: bool) -> None:
    chip = Chip(idempotent_program=idempotent)
    with served(protocol, chip) as port:
        device = OPEN[protocol](port, watchdog=0.8)
        inputs = torch.linspace(0, 1, 2 * N).view(2, N)
        with Session(device) as session:
            answer = session.apply(torch.ones(N * M), inputs)
            # Stop the host: its threads do not run.
            heartbeat = vars(device)["_heartbeat"]
            with heartbeat_stopped(heartbeat):
                assert until(lambda: not chip.is_on)
            with pytest.raises(NotConnected, match="no controls are set"):
                device.query(inputs)
            if idempotent:
                assert torch.equal(session.query(inputs), answer)
            else:
                with pytest.raises(NotConnected, match=r"no controls are set.*call program to continue"):
                    session.query(inputs)
                assert torch.equal(session.apply(torch.ones(N * M), inputs), answer)
            # It is guarded again.
            time.sleep(1.6)
            assert chip.is_on


@contextmanager
def heartbeat_stopped(heartbeat: Any) -> Iterator[None]:
    heartbeat.hold()
    try:
        yield
    finally:
        heartbeat.release()


# -- faults ----------------------------------------------------------------------------------------


def test_a_beat_that_fails_is_reported_and_tried_again(protocol: str, chip: Chip, caplog: Any) -> None:
    with served(protocol, chip) as port:
        device = OPEN[protocol](port, watchdog=1.0, timeout=0.1)
        with Session(device) as session:
            answer = session.apply(torch.ones(N * M), torch.ones(1, N))
            with caplog.at_level(logging.WARNING), device.interrupted():
                assert until(lambda: "the watchdog cannot be set again" in caplog.text)
            assert torch.equal(session.query(torch.ones(1, N)), answer)


def test_a_fault_of_a_beat_is_not_hidden_from_the_next_operation(protocol: str, chip: Chip) -> None:
    with served(protocol, chip) as port:
        device = OPEN[protocol](port, watchdog=0.3, timeout=0.1)
        device.open()
        device.program(torch.ones(N * M))
        # An operation after the fault must not send the request before it again, and take its answer for its own.
        with device.interrupted():
            assert until(lambda: vars(vars(device)["_heartbeat"])["_failed"])
            with pytest.raises(NotConnected, match=r"the watchdog cannot be set again: .* sent nothing for"):
                device.query(torch.ones(1, N))
        assert until(lambda: not vars(vars(device)["_heartbeat"])["_failed"])
        device.program(torch.ones(N * M))
        assert device.query(torch.ones(1, N)).tolist() == [[4.0, 4.0, 4.0]]
        device.close()


def test_a_beat_of_a_broken_line_ends_with_the_driver(protocol: str, chip: Chip) -> None:
    with served(protocol, chip) as port:
        device = OPEN[protocol](port, watchdog=0.2, timeout=0.1)
        device.open()
    with pytest.raises(NotConnected):
        device.program(torch.ones(N * M))
    with pytest.raises(DeviceError):
        device.close()
    assert beats() == []


def test_a_driver_that_is_deleted_without_closing_stops_its_beats(protocol: str, chip: Chip) -> None:
    with served(protocol, chip) as port:
        device = OPEN[protocol](port, watchdog=0.3)
        device.open()
        device.program(torch.ones(N * M))
        transport = device.transport
        assert len(beats()) == 1
        del device
        gc.collect()
        assert until(lambda: not chip.is_on)
        assert until(lambda: beats() == [])
        transport.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_no_beats_and_finds_no_lock_held(protocol: str, chip: Chip) -> None:
    with served(protocol, chip) as port:
        device = OPEN[protocol](port, watchdog=0.1, timeout=0.1)
        device.open()
        for _ in range(20):
            child = os.fork()
            if not child:
                # The locks would be held for ever if the parent had forked in the middle of a beat.
                signal.alarm(10)
                with suppress(DeviceError), device.interrupted():
                    device.program(torch.ones(N * M))
                os._exit(0 if beats() == [] else 1)
            assert os.waitpid(child, 0)[1] == 0
            time.sleep(0.005)
        device.program(torch.ones(N * M))
        device.close()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0, -1, 0.05, float("nan"), float("inf"), 1e9, "5", True, [5]])
@pytest.mark.parametrize("driver", ["frame-mvm", "scpi-mvm"])
def test_a_time_that_no_device_can_count_is_refused(driver: str, seconds: Any) -> None:
    with pytest.raises(DeviceError, match=r"watchdog must be a time from 0.1 to 4294967 seconds, or None .*, not"):
        d.make_device(driver, port="loop://nobody", watchdog=seconds)


def test_whole_seconds_are_accepted() -> None:
    assert check_watchdog(5) == 5.0
    assert check_watchdog(None) is None


@pytest.mark.parametrize(
    ("seconds", "milliseconds", "text"),
    [(5, 5000, "5"), (0.25, 250, "0.25"), (0.1001, 101, "0.101"), (0, 0, "0"), (1e-9, 1, "0.001"), (0.3, 300, "0.3")],
)
def test_seconds_become_milliseconds_upwards(seconds: float, milliseconds: int, text: str) -> None:
    assert milliseconds_of(seconds) == milliseconds
    assert seconds_of(milliseconds) == text


def test_a_device_without_a_watchdog_is_refused(
    protocol: str, chip: Chip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if protocol == "frames":
        monkeypatch.setattr("astralora.drivers.frame_server._OPTIONS", Option.QUERY_EACH)
    else:
        monkeypatch.setattr(ScpiServer, "_set_watchdog", lambda *_: 1 / 0)
    bench = tmp_path / "bench.toml"
    with served(protocol, chip) as port:
        bench.write_text(f'device = "{EMULATORS[protocol].driver}"\n[options]\nport = "{port}"\nwatchdog = 5\n')
        with pytest.raises(DeviceError, match="leave out the option watchdog, or implement") as no:
            d.open_device(str(bench))
        assert "\n" not in str(no.value)
        assert not isinstance(no.value, (DeviceTimeout, ProtocolError, NotConnected)), "trying again would not help"
        assert beats() == []


def test_a_bench_file_sets_the_watchdog(protocol: str, chip: Chip, tmp_path: Path) -> None:
    bench = tmp_path / "bench.toml"
    with served(protocol, chip) as port:
        bench.write_text(f'device = "{EMULATORS[protocol].driver}"\n[options]\nport = "{port}"\nwatchdog = 5\n')
        with d.open_device(str(bench)) as session:
            session.program(torch.ones(N * M))
            assert len(beats()) == 1
        assert beats() == []


# -- the device ------------------------------------------------------------------------------------


def test_the_timer_of_the_device_expires_once() -> None:
    expired: list[int] = []
    watchdog = Watchdog(lambda: expired.append(1))
    watchdog.check()
    watchdog.set(1)
    time.sleep(0.01)
    watchdog.check()
    watchdog.check()
    assert expired == [1]
    assert watchdog.milliseconds == 0


def test_scpi_sets_and_reports_the_time(chip: Chip) -> None:
    with served("scpi", chip) as port, open_transport(port, 5.0) as line:

        def say(message: bytes) -> str:
            line.write(message + b"\n")
            return line.read_until(b"\n", 1000).decode().strip()

        assert say(b"SYST:WATC?") == "0"
        for text, told in [(b"5", "5"), (b".25", "0.25"), (b"+1E1", "10"), (b"1e-9", "0.001"), (b"0", "0")]:
            assert say(b"system:watchdog " + text + b";:SYST:WATC?;:SYST:ERR?") == f'{told};0,"No error"'
        for wrong in (b"-1", b"nan", b"inf", b"1_0", b"", b"5,5", b"1e10", b"MAX", b"#15abcde"):
            assert "-222" in say(b"SYST:WATC " + wrong + b";:SYST:ERR?")
        assert say(b"SYST:WATC 5;*RST;:SYST:WATC?") == "0"


@pytest.mark.parametrize("protocol", ["frames"])
def test_a_long_operation_does_not_let_it_expire(protocol: str) -> None:
    class Slow(Chip):
        def _query(self, inputs: Any) -> Any:
            time.sleep(1.2)
            return super()._query(inputs)

    chip = Slow(vector_seconds=1.2)
    with served(protocol, chip) as port, Session(OPEN[protocol](port, watchdog=0.8)) as session:
        session.apply(torch.ones(N * M), torch.ones(1, N))
        time.sleep(0.1)
        assert chip.is_on
        session.query(torch.ones(1, N))
        assert session.usage.retries == 0
