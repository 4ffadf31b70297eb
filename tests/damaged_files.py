"""Run commands on damaged files: each ends with a result or with one sentence, never with a traceback or a hang."""

from __future__ import annotations

import random
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from typer.testing import CliRunner

import astralora as al
from astralora.calibration.descent import Descent
from astralora.cli.app import app
from astralora.drivers.emulator.emulator import Emulator
from astralora.simulators import KINDS, Impairments, device_factory

from .damage import HOSTILE, damaged, damaged_values

__all__ = ["KINDS_OF_FILES", "Kind", "make_samples", "run_damaged"]

_SECONDS = 60
_SMALL = ("--in-features", "4", "--out-features", "4")
_CHECK = (*_SMALL, "--only", "spec", "--no-measure")
_DEVICE_FILE = """
import torch
from astralora.devices import DeviceSpec, wrap_device

def make(in_features: int = 4, out_features: int = 4):
    spec = DeviceSpec(name="mine", in_features=in_features, out_features=out_features, num_controls=4)
    return wrap_device(spec, program=lambda controls: None, query=lambda inputs: torch.zeros(len(inputs), out_features))
"""


@dataclass(frozen=True)
class Kind:
    """Describe a kind of file that a command reads.

    Attributes:
        file: name of the sample.
        form: ``"json"`` or ``"toml"``, whose values are replaced as well; empty for others.
        command: the command, run in the folder of the samples.
    """

    file: str
    form: str
    command: tuple[str, ...]


KINDS_OF_FILES: dict[str, Kind] = {
    "bench": Kind("bench.toml", "toml", ("check", "--device", "bench.toml", *_CHECK)),
    "fault plan": Kind(
        "plan.toml",
        "toml",
        ("emulate", "--device", "matvec", *_SMALL, "--tcp", "127.0.0.1:0", "--faults", "plan.toml"),
    ),
    "configuration": Kind("run.toml", "toml", ("plan", "--config", "run.toml")),
    "calibration": Kind("c.cal.json", "json", ("report", "c.cal.json", "-o", "page.html")),
    "tensors": Kind("c.safetensors", "", ("report", "c.cal.json", "-o", "page.html")),
    "twin": Kind(
        "c.cal.json",
        "json",
        ("check", "--device", "twin", "--set", "device.options.calibration=c.cal.json", *_CHECK[4:]),
    ),
    "check": Kind("check.json", "json", ("report", "check.json", "-o", "page.html")),
    "characterisation": Kind(
        "check.json",
        "json",
        ("calibrate", "--device", "slm", *_SMALL, "--model", "none", "--known", "check.json", "-o", "new.cal.json"),
    ),
    "unfinished pairs": Kind(
        "u.json.part", "", ("calibrate", "--device", "slm", *_SMALL, "-o", "u.json", "--budget-programs", "4")
    ),
    "unfinished measurements": Kind(
        "k.json.known.part",
        "json",
        ("calibrate", "--device", "slm", *_SMALL, "--model", "none", "--budget-programs", "60", "-o", "k.json"),
    ),
    "unfinished cost": Kind(
        "k.json.cost.part",
        "json",
        ("calibrate", "--device", "slm", *_SMALL, "--model", "none", "--budget-programs", "60", "-o", "k.json"),
    ),
    "device file": Kind("chip.py", "", ("check", "--device", "chip.py:make", *_CHECK)),
    "recording": Kind(
        "run.rec", "", ("check", "--device", "replay", "--set", "device.options.path=run.rec", *_CHECK[4:])
    ),
    "scores": Kind("scores.toml", "toml", ("adapters", "search", "scores.toml", "-o", "adapters.toml")),
    "adapters": Kind(
        "base.toml", "toml", ("adapters", "search", "scores.toml", "--adapters", "base.toml", "-o", "a.toml")
    ),
}
"""Every kind of file that a command reads, by name; run folders have tests of their own."""


def make_samples(folder: Path) -> Path:
    """Write one valid file of each kind."""
    (folder / "bench.toml").write_text('device = "matvec"\n\n[options]\nin_features = 4\nout_features = 4\nseed = 3\n')
    (folder / "plan.toml").write_text('timeout = 0.01\nnan = 0.1\nseed = 3\nflagged = true\n\n[at]\n3 = "late"\n')
    (folder / "run.toml").write_text(
        'task = "digits"\nseed = 1\nepochs = 1\nin_features = 16\nout_features = 16\n\n[device]\nname = "slm"\n\n'
        '[device.options]\nmax_batch = 8\n\n[method]\nname = "auto"\n\n[budget]\nprograms = 100000000\n\n[retry]\n'
        "attempts = 3\n"
    )
    (folder / "chip.py").write_text(_DEVICE_FILE)
    (folder / "scores.toml").write_text(
        'proxy = "grad_norm"\nbatches = 3\n\n[model_layer_0]\nq_proj = 0.5\nfc1 = 0.25\n\n[model_layer_1]\n'
        "residual1 = 0.1\n\n[costs.model_layer_0]\nq_proj = 64.0\nfc1 = 160.0\n\n[costs.model_layer_1]\n"
        "residual1 = 64.0\n"
    )
    (folder / "base.toml").write_text(
        'granularity = "network"\n\n[default]\nr = 8\nlora_alpha = 16.0\n\n[all_layers.q_proj]\nr = 4\n'
        "lora_dropout = 0.1\n"
    )
    law = Impairments(input_levels=255, output_levels=255, output_noise_fraction=0.02)
    chip = device_factory(KINDS["slm"])(4, 4, impairments=law)
    record = al.calibrate(chip, al.Budget(programs=24), steps=100)
    assert record.fit is not None
    assert record.fit.fits
    record.save(folder / "c.cal.json")
    tensors = next(folder.glob("*.safetensors"))
    # A name without the hash stays the same when its content changes.
    content = (folder / "c.cal.json").read_text().replace(tensors.name, "c.safetensors")
    tensors.rename(folder / "c.safetensors")
    (folder / "c.cal.json").write_text(content)
    _invoke("check", "--device", "slm", *_SMALL, "--out", str(folder / "check.json"), "--budget-programs", "80")
    for name, settings in (("u.json", 2), ("k.json", 0)):
        device = device_factory(KINDS["slm"])(4, 4, impairments="lab")
        with suppress(_Stopped):
            if settings:
                al.calibrate(device, al.Budget(programs=4), path=folder / name, listener=_stop, model="slm")
            else:
                _stop_after_measuring(device, folder / name)
    with al.Session(al.devices.RecordingDevice(chip, folder / "run.rec")) as session:
        session.apply(al.devices.initial_controls(chip.spec, al.devices.derive_generator(0, "test")), _eye())
    return folder


def run_damaged(
    name: str, samples: Path, folder: Path, count: int, hostile: int | None = None, seed: int = 0
) -> Counter[str]:
    """Run the command of a kind on damaged versions of its file.

    Args:
        name: kind of file.
        samples: folder of valid files.
        folder: empty folder to work in, the current folder of this process.
        count: number of damaged versions, and of versions with a wrong value.
        hostile: number of contents that are no file of any kind; all if None.
        seed: seed of the damage.

    Returns:
        Number of versions that were accepted and refused.
    """
    kind, outcomes = KINDS_OF_FILES[name], Counter[str]()
    rng = random.Random(f"{name} {seed}")
    content = (samples / kind.file).read_bytes()
    versions: list[tuple[str, bytes]] = rng.sample(list(HOSTILE.items()), len(HOSTILE) if hostile is None else hostile)
    versions += damaged(content, rng, count)
    if kind.form:
        versions += damaged_values(content, kind.form, rng, count)
    for what, data in [("undamaged", content), *versions]:
        for path in folder.iterdir():
            path.unlink()
        for path in samples.iterdir():
            shutil.copy(path, folder)
        (folder / kind.file).write_bytes(data)
        outcome = _run(kind.command, f"{name}: {what}")
        assert what != "undamaged" or outcome != "refused", f"{name}: the valid file was refused"
        outcomes[outcome] += 1
    return outcomes


def _run(command: tuple[str, ...], what: str) -> str:
    with _time_limit(what), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = _invoke(*command)
    context = f"{what}: {result.output[-2000:]}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(context) from result.exception
    assert result.exit_code in (0, 1), context
    assert "Traceback" not in result.output, context
    if result.exit_code == 0:
        return "accepted"
    if result.stderr.startswith("error: "):
        assert result.stderr.count("\n") == 1, context
        assert len(result.stderr) < 2500, context
        assert result.stderr.rstrip("\n").isprintable(), context
        return "refused"
    assert "checks failed" in result.stderr or "fit" in result.stderr, context
    return "failed check"


def _invoke(*command: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Emulator, "wait", lambda self: None)
        # Whether a law fits does not matter here.
        patch.setattr(Descent, "descend", lambda *_: None)
        return CliRunner().invoke(app, list(command))


class _Stopped(Exception):
    """Stop a calibration, so that its files stay."""


def _stop(event: dict[str, Any]) -> None:
    if event["event"] == "measured" and event["done"] == 2:
        raise _Stopped


def _stop_after_measuring(device: Any, path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_: object, **__: object) -> None:
            raise _Stopped

        patch.setattr(al.devices.Calibration, "save", stop)
        al.calibrate(device, al.Budget(programs=60), model="none", path=path)


def _eye() -> Any:
    import torch

    return torch.eye(4)


@contextmanager
def _time_limit(what: str) -> Iterator[None]:
    """Fail a command that hangs, where signals can interrupt it."""

    def expire(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"{what}: no end after {_SECONDS} seconds")

    if not hasattr(signal, "setitimer"):
        yield
        return
    earlier: Callable[[int, FrameType | None], Any] | int | None = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
