"""Test device factories that are named by file and function."""

import os
import sys
from pathlib import Path

import pytest

import astralora.devices as d
from astralora.devices import Bench, DeviceError
from astralora.devices.device_files import absolute_name, split_name

CHIP = """
'''A chip in a file.'''
import astralora.devices as d
from helper import SCALE

ANSWER = 42
COUNT = []

def make_chip(in_features=4, out_features=3, *, seed=0, scale=SCALE):
    '''Make the chip of this file.'''
    spec = d.DeviceSpec(name="mine", in_features=in_features, out_features=out_features, num_controls=1, linear=True)
    return d.wrap_device(spec, program=lambda w: None, query=lambda x: scale * x[:, :out_features])

class Chip(d.HardwareDevice):
    def __init__(self):
        super().__init__(d.DeviceSpec(name="class", in_features=2, out_features=2, num_controls=1))
    def _open(self): pass
    def _close(self): pass
    def _program(self, controls): pass
    def _query(self, inputs): return inputs
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with a chip in ``mychip.py`` and a module beside it, and restore Python's modules afterwards."""
    (tmp_path / "mychip.py").write_text(CHIP)
    (tmp_path / "helper.py").write_text("SCALE = 2.0\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mychip.py:make", ("mychip.py", "make")),
        (r"C:\lab\mychip.py:make", (r"C:\lab\mychip.py", "make")),
        ("a:b/mychip.py:make", ("a:b/mychip.py", "make")),
        ("mychip.py", ("mychip.py", "")),
        (r"C:\lab\mychip.py", (r"C:\lab\mychip.py", "")),
        ("mrr", None),
        ("bench.toml", None),
        ("frame:mvm", None),
    ],
)
def test_the_last_colon_separates_file_and_factory(name: str, expected: tuple[str, str] | None) -> None:
    parts = split_name(name)
    assert (parts and (str(parts[0]), parts[1])) == expected


@pytest.mark.parametrize("factory", ["make_chip", "Chip"])
def test_opens_a_device_from_a_file(folder: Path, factory: str) -> None:
    with d.open_device(f"{folder}/mychip.py:{factory}") as session:
        assert session.spec.name == ("mine" if factory == "make_chip" else "class")


def test_a_relative_path_begins_at_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    entry = d.find_device("mychip.py:make_chip")
    assert entry.summary == "Make the chip of this file"
    assert entry.accepts("scale")
    assert absolute_name("mychip.py:make_chip") == f"{folder / 'mychip.py'}:make_chip"
    assert absolute_name("mrr") == "mrr"


def test_offered_options_reach_the_factory_if_it_takes_them(folder: Path) -> None:
    device = d.offer_device(f"{folder}/mychip.py:make_chip", {"in_features": 6, "seed": 1}, scale=1.0)
    assert device.spec.in_features == 6
    with pytest.raises(DeviceError, match="its options are in_features, out_features, seed, scale"):
        d.make_device(f"{folder}/mychip.py:make_chip", colour=1)


def test_a_wrapper_takes_a_file_as_its_inner_device(folder: Path) -> None:
    device = d.make_device("tiled", in_features=8, out_features=6, tile=4, chip=f"{folder}/mychip.py:make_chip")
    assert (device.spec.in_features, device.spec.out_features) == (8, 6)


def test_a_path_in_a_bench_file_begins_at_the_folder_of_that_file(folder: Path) -> None:
    (folder / "lab").mkdir()
    bench = folder / "lab" / "bench.toml"
    bench.write_text('device = "../mychip.py:make_chip"\n[options]\nin_features = 5\n')
    assert Bench.load(bench).device == f"{folder / 'mychip.py'}:make_chip"
    assert d.make_device(str(bench)).spec.in_features == 5


def test_a_file_is_imported_again_only_after_a_change(folder: Path) -> None:
    def query() -> object:
        return d.find_device(f"{folder}/mychip.py:make_chip").factory

    first = query()
    assert query() is first
    (folder / "mychip.py").write_text(CHIP.replace("of this file", "of the new file"))
    os.utime(folder / "mychip.py", ns=(1, 1))
    assert query() is not first
    assert "new file" in str(query().__doc__)
    assert not (folder / "__pycache__" / "mychip.cpython-311.pyc").exists()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.py:make", None, "there is no file .*none.py"),
        ("mychip.py", CHIP, "the name of the factory is missing; write FILE.py:FACTORY, .* are make_chip, Chip"),
        ("mychip.py:", CHIP, "the name of the factory is missing"),
        ("mychip.py:make", CHIP, "mychip.py has no 'make'; .* functions and classes in this file are make_chip, Chip"),
        ("mychip.py:ANSWER", CHIP, "ANSWER in mychip.py is of type int; it must be a function or a class"),
        ("odd.py:make", "import no_such_sdk", "odd.py cannot be imported: ModuleNotFoundError: No module named 'no_su"),
        ("odd.py:make", "raise SystemExit(3)", "odd.py cannot be imported: SystemExit: 3"),
        ("odd.py:make", "def make(:", "odd.py cannot be imported: SyntaxError: invalid syntax"),
        ("odd.py:make", "", "has no 'make'; .* are none"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(folder: Path, name: str, content: str | None, complaint: str) -> None:
    if content is not None:
        (folder / name.partition(":")[0]).write_text(content)
    with pytest.raises(DeviceError, match=complaint) as error:
        d.open_device(f"{folder}/{name}")
    assert "\n" not in str(error.value)
    (folder / "bench.toml").write_text(f'device = "{name}"\n')
    with pytest.raises(DeviceError, match=complaint):
        d.open_device(str(folder / "bench.toml"))
