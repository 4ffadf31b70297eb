"""Test that files are read safely and written atomically."""

import errno
import os
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from astralora.common.errors import ConfigurationError
from astralora.devices import DeviceError
from astralora.devices.files import (
    check_writable,
    read_bytes,
    read_text,
    remove_file,
    write_atomically,
    write_file,
)

from ..children import start

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Run as a user to whom permissions apply, also where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that every user can reach; those of pytest are private."""
    with TemporaryDirectory() as path:
        Path(path).chmod(0o777)
        yield Path(path)


def drafts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.endswith(".tmp")]


# -- reading --------------------------------------------------------------------------------------


def test_text_is_read_with_and_without_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "text"
    for data in ("höhe".encode(), "höhe".encode("utf-8-sig")):
        path.write_bytes(data)
        assert read_text(path) == "höhe"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("höhe".encode("latin-1"), "is not UTF-8 text: byte 1 is 0xf6; save it as UTF-8"),
        ("a".encode("utf-16"), "is not UTF-8 text: it begins like UTF-16; save it as UTF-8"),
    ],
)
def test_another_encoding_is_named(data: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ConfigurationError, match=f"the plan .*x {complaint}$"):
        read_text(tmp_path / "x", "the plan", error=ConfigurationError)


def test_what_is_not_a_readable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for path, complaint in (
        (tmp_path / "none", "none cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: it is a folder; name a file"),
        (tmp_path / "loop", "cannot be read: Too many levels of symbolic links"),
        (tmp_path / "file" / "x", "cannot be read: Not a directory"),
        ("a\0b", r"a\\x00b cannot be read: embedded null byte"),
        ("a\nb", r"a\\nb cannot be read: No such file"),
        ("\udcff", "cannot be read: No such file"),
        ("\ud800", "cannot be read: its name or its text has characters that cannot be encoded"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("", "'' cannot be read: No such file"),
    ):
        with pytest.raises(DeviceError, match=complaint) as error:
            read_bytes(path)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 600


@posix
def test_a_file_without_permission_is_refused(folder: Path) -> None:
    path = folder / "secret"
    path.write_text("x")
    path.chmod(0)
    with as_ordinary_user(), pytest.raises(DeviceError, match="secret cannot be read: Permission denied"):
        read_bytes(path)


def test_a_file_above_the_limit_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**40)  # without content, so that it takes no space
    with pytest.raises(DeviceError, match=r"large is larger than 67,108,864 bytes"):
        read_bytes(path)
    path.write_bytes(b"12345")
    assert read_bytes(path, limit=5) == b"12345"
    with pytest.raises(DeviceError, match="larger than 4 bytes"):
        read_bytes(path, limit=4)


@posix
def test_devices_and_pipes_never_hang(tmp_path: Path) -> None:
    assert read_bytes("/dev/null") == b""
    with pytest.raises(DeviceError, match="is larger than 1,000 bytes"):
        read_bytes("/dev/zero", limit=1000)
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(tmp_path / "pipe") == b"", "a pipe without a writer is empty"


@posix
def test_a_pipe_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    wrote = threading.Event()

    def write() -> None:
        os.write(writer, b"first ")
        wrote.wait(10)
        os.write(writer, b"second")
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wrote.set()
        assert read_bytes(f"/dev/fd/{reader}") == b"first second"
    finally:
        thread.join()
        os.close(reader)


# -- writing --------------------------------------------------------------------------------------


def test_a_file_is_replaced_and_no_draft_is_left(tmp_path: Path) -> None:
    for content, data in (("höhe", "höhe".encode()), (b"\xff", b"\xff")):
        write_atomically(tmp_path / "x", content)
        assert (tmp_path / "x").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@posix
def test_an_earlier_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for mode in (0o640, 0o600, 0o755):
        path.write_text("old")
        path.chmod(mode)
        write_atomically(path, "new")
        assert stat.S_IMODE(path.stat().st_mode) == mode
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "y", "new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "y").stat().st_mode) == 0o640


@posix
def test_a_symbolic_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "target").write_text("old")
    (tmp_path / "link").symlink_to(Path("a") / "target")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "a" / "target").read_text() == "new"
    (tmp_path / "dangling").symlink_to(Path("a") / "fresh")
    write_atomically(tmp_path / "dangling", "new")
    assert (tmp_path / "a" / "fresh").read_text() == "new"
    (tmp_path / "nowhere").symlink_to(Path("b") / "x")
    (tmp_path / "loop").symlink_to("loop")
    for name, complaint in (("nowhere", "No such file"), ("loop", "Too many levels of symbolic links")):
        with pytest.raises(DeviceError, match=f"{name} cannot be written: {complaint}"):
            write_file(tmp_path / name, "new")
        assert (tmp_path / name).is_symlink()


@posix
def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    write_atomically(Path("/dev/null"), "x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(DeviceError, match="/dev/full cannot be written: No space left on device; free some space"):
        write_file("/dev/full", "x" * 100_000)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DeviceError, match="pipe cannot be written: No such device or address"):
        write_file(tmp_path / "pipe", "x")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", "x")
    assert os.read(reader, 10) == b"x"
    os.close(reader)
    with pytest.raises(DeviceError, match="cannot be written: it is a folder; name a file"):
        write_file(tmp_path, "x")


def test_a_failure_keeps_the_earlier_file_and_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    for name, number in (("fsync", errno.EDQUOT), ("replace", errno.EIO), ("fsync", errno.ENOSPC)):

        def fail(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(ConfigurationError, match=rf"x cannot be written: {os.strerror(number)}"):
                write_file(path, "new", error=ConfigurationError)
        assert path.read_text() == "old"
        assert drafts(tmp_path) == []


def test_ctrl_c_while_writing_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x", "new")
    assert list(tmp_path.iterdir()) == []


_LIMITED = """
import resource, sys
from astralora.devices import DeviceError
from astralora.devices.files import write_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_file(sys.argv[1], b"x" * 2000, "the record")
except DeviceError as error:
    print(error)
"""


@posix
def test_a_limit_on_the_size_of_files_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    child = start([sys.executable, "-c", _LIMITED, path], stdout=-1)
    printed, _ = child.communicate(timeout=120)
    assert printed.strip() == (
        f"the record {path} cannot be written: File too large; raise the limit on the size of files ('ulimit -f'), or "
        f"write elsewhere"
    )
    assert path.read_text() == "old"
    assert drafts(tmp_path) == []


@posix
def test_missing_permissions_and_impossible_names_are_refused(folder: Path) -> None:
    (folder / "closed").mkdir()
    (folder / "closed").chmod(0o555)
    (folder / "fixed").write_text("old")
    (folder / "fixed").chmod(0o444)
    (folder / "file").write_text("old")
    with as_ordinary_user():
        for path, complaint in (
            (folder / "closed" / "x", "Permission denied"),
            (folder / "fixed", "Permission denied"),
            (folder / "none" / "x", "No such file or directory"),
            (folder / "file" / "x", "Not a directory"),
            (folder / ("x" * 300), "File name too long; choose a shorter name"),
            ("a\0b", "embedded null byte"),
        ):
            with pytest.raises(DeviceError, match=f"cannot be written: {complaint}"):
                write_file(path, "new")
            with pytest.raises(DeviceError, match="cannot be written: ") as error:
                check_writable(path)
            assert "\n" not in str(error.value)
    assert (folder / "fixed").read_text() == "old"


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    for length in (230, 240, 255):
        path = tmp_path / ("x" * length)
        check_writable(path)
        write_file(path, "new")
        assert path.read_text() == "new"
    assert drafts(tmp_path) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from tempfile import TemporaryDirectory
from astralora.devices.files import write_atomically
os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), "half")
"""


@posix
def test_the_draft_of_a_killed_process_is_cleared_by_the_next_write_of_the_same_file(tmp_path: Path) -> None:
    for name in ("x", "y"):
        assert start([sys.executable, "-c", _KILLED, tmp_path / name]).wait(timeout=120) < 0
    assert len(drafts(tmp_path)) == 2
    (tmp_path / ".x.unrelated.tmp").write_text("of another program")
    write_atomically(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    assert sorted(path.name[:3] for path in drafts(tmp_path)) == [".x.", ".y."]
    assert (tmp_path / ".x.unrelated.tmp").exists()


@posix
def test_the_draft_of_a_living_writer_is_not_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync
    written: list[bool] = []

    def write_meanwhile(number: int) -> None:
        sync(number)
        if not written:
            written.append(True)
            write_atomically(tmp_path / "x", "second")

    monkeypatch.setattr(os, "fsync", write_meanwhile)
    write_atomically(tmp_path / "x", "first")
    assert (tmp_path / "x").read_text() == "first", "the last to finish wins"
    assert drafts(tmp_path) == []


_MANY = """
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from astralora.devices.files import write_atomically
for number in range(60):
    write_atomically(Path(sys.argv[1]), sys.argv[2] * 50_000)
"""


@posix
def test_processes_and_threads_that_write_the_same_file_do_not_mix_their_contents(tmp_path: Path) -> None:
    path = tmp_path / "x"
    children = [start([sys.executable, "-c", _MANY, path, letter]) for letter in "ab"]

    def write(letter: str) -> None:
        for _ in range(60):
            write_atomically(path, letter * 50_000)

    threads = [threading.Thread(target=write, args=letter) for letter in "cd"]
    for thread in threads:
        thread.start()
    seen = set()
    while any(child.poll() is None for child in children) or any(thread.is_alive() for thread in threads):
        if path.exists():
            text = path.read_text()
            assert len(text) == 50_000
            assert len(set(text)) == 1
            seen.add(text[0])
    for thread in threads:
        thread.join()
    assert [child.wait() for child in children] == [0, 0]
    assert len(seen) > 1
    assert drafts(tmp_path) == []


def test_a_file_is_deleted_if_it_exists(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    for _ in range(2):
        remove_file(tmp_path / "x")
    with pytest.raises(DeviceError, match="cannot be deleted: "):
        remove_file(tmp_path)
