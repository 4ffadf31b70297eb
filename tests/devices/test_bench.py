"""Test bench files in the place of a device's name."""

from pathlib import Path

import pytest
import torch

import astralora.devices as d
from astralora.devices import Bench, DeviceError


def test_a_bench_opens_the_device_that_it_names(tmp_path: Path) -> None:
    Bench(device="matvec", options={"in_features": 4, "out_features": 3}).save(tmp_path / "bench.toml")
    with d.open_device(str(tmp_path / "bench.toml")) as session:
        assert session.apply(torch.ones(12), torch.ones(1, 4)).tolist() == [[4.0, 4.0, 4.0]]
    assert Bench.load(tmp_path / "bench.toml").options == {"in_features": 4, "out_features": 3}


def test_options_given_beside_it_are_added(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text('device = "matvec"\n[options]\nin_features = 4\n')
    device = d.make_device(str(tmp_path / "bench.toml"), out_features=2)
    assert device.spec.out_features == 2


def test_offered_options_reach_devices_that_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("astralora.devices.registry._registered", {})
    (tmp_path / "bench.toml").write_text('device = "matvec"\n[options]\nin_features = 4\nout_features = 3\n')
    device = d.offer_device(str(tmp_path / "bench.toml"), {"impairments": "lab"})
    assert device.spec.control_levels == 256
    fixed = d.wrap_device(device.spec, program=lambda w: None, query=lambda x: x)
    d.register_device("fixed", lambda: fixed, replace=True)
    assert d.offer_device("fixed", {"impairments": "lab"}) is fixed
    with pytest.raises(DeviceError, match="the option 'seed' is given twice"):
        d.offer_device("matvec", {"seed": 1}, seed=2, in_features=4, out_features=3)


def test_an_entry_names_the_source_of_the_device(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text('device = "matvec"\n')
    entry = d.find_device(str(tmp_path / "bench.toml"))
    assert entry.source.startswith("matvec of astralora")
    assert entry.summary.startswith("Simulate a crossbar")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read: No such file or directory"),
        ("device = ", "is not TOML"),
        ("[options]\n", "device: Field required"),
        ('device = "mrr"\nport = "x"\n', "port: there is no such key; known are device, options"),
        ('device = "nope"\n', "there is no device named 'nope'"),
        ('device = "bench.toml"\n', "a bench must name a registered device or FILE.py:FACTORY, not another bench file"),
        ('device = "mrr"\n[options]\ncolour = 1\n', "colour"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "bench.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DeviceError) as error:
        d.make_device(str(path), in_features=2, out_features=2)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_is_written_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bench.toml"
    Bench(device="matvec").save(path)
    before = path.read_text()

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", crash)
    with pytest.raises(DeviceError, match=r"the bench file .* cannot be written: No space left on device; free some"):
        Bench(device="mrr").save(path)
    assert path.read_text() == before
