"""Test the lock of a run folder."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from astralora import ConfigurationError
from astralora.training.lock import FolderLock

from ..children import start

HOLD = """
import sys, time
from pathlib import Path
from astralora.training.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds a folder until it is killed."""
    process = start([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=30)


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system have no locks."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", fail)


def test_a_folder_has_one_owner_and_nothing_is_left_behind(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.acquire()
    first.acquire()
    with pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()} on host {socket.gethostname()}"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_exactly_one_of_six_gets_a_folder(tmp_path: Path) -> None:
    ready = Barrier(6)

    def attempt(lock: FolderLock) -> bool:
        ready.wait()
        try:
            lock.acquire()
        except ConfigurationError:
            return False
        return True

    locks = [FolderLock(tmp_path) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(attempt, locks)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs SIGKILL")
def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    process, lock = hold(tmp_path), FolderLock(tmp_path)
    try:
        with pytest.raises(ConfigurationError, match=f"in use by process {process.pid} on host"):
            lock.acquire()
    finally:
        end(process)
    assert (tmp_path / ".lock").exists()
    lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_hold_the_folder_of_its_parent(tmp_path: Path) -> None:
    fork = "import os; child = os.fork()\nif child: print(child, flush=True)\n"
    code = HOLD.replace("time.sleep(60)", f"{fork}time.sleep(60)")
    with start([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        child = int(process.stdout.readline())
        process.kill()
        process.wait(timeout=30)
        lock = FolderLock(tmp_path)
        try:
            lock.acquire()
        finally:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        lock.release()


def test_a_removed_folder_is_noticed(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    lock.acquire()
    lock.check()
    (tmp_path / ".lock").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="was removed or replaced while its run wrote into it"):
        lock.check()
    lock.release()


@pytest.mark.usefixtures("without_locks")
def test_a_file_names_the_owner_where_the_file_system_has_no_locks(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.acquire()
    with pytest.raises(ConfigurationError, match=r"if this process has ended, delete .*\.lock-owner"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize(
    ("owner", "lives"),
    [
        ({"process": os.getpid(), "host": socket.gethostname(), "started": "1"}, False),
        ({"process": 2**22 + 1, "host": socket.gethostname(), "started": None}, False),
        ({"process": 1, "host": "another", "started": "1"}, True),
        ({"process": "x"}, True),
    ],
)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the start times of processes")
def test_the_file_of_an_ended_owner_is_taken_over(owner: Any, lives: bool, tmp_path: Path) -> None:
    (tmp_path / ".lock-owner").write_text(json.dumps(owner))
    lock = FolderLock(tmp_path)
    if lives:
        with pytest.raises(ConfigurationError, match="is in use by"):
            lock.acquire()
        return
    lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []
