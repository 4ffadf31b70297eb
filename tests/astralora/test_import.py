"""What importing astralora does, and does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import astralora as al
import devices


def python(code: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_everything_of_devices_is_there() -> None:
    assert set(devices.__all__) <= set(al.__all__)
    assert al.open_device is devices.open_device


def test_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    run = python("import torch; a = torch.random.get_rng_state(); import astralora, simulators, drivers\n"
                 "assert torch.equal(a, torch.random.get_rng_state())", tmp_path)  # fmt: skip
    assert run.returncode == 0, run.stderr


def test_loads_nothing_that_is_only_needed_later(tmp_path: Path) -> None:
    late = [
        "matplotlib",
        "sklearn",
        "scipy",
        "typer",
        "rich",
        "jinja2",
        "simulators",
        "drivers",
        "tensorboard",
        "serial",
        "accelerate",
        "transformers",
        "astralora.optim",
        "astralora.lowrank.oialr",
    ]
    before = python("import torch, pydantic, sys; print(*sys.modules)", tmp_path).stdout.split()
    after = python("import astralora, sys; print(*sys.modules)", tmp_path).stdout.split()
    assert [name for name in late if name in after and name not in before] == []


@pytest.mark.parametrize("name", ["devices", "simulators", "drivers"])
@pytest.mark.parametrize("shape", ["module", "package", "folder"])
def test_a_package_in_the_way_is_named_in_one_sentence(name: str, shape: str, tmp_path: Path) -> None:
    if shape == "module":
        (tmp_path / f"{name}.py").write_text("")
        place = tmp_path / f"{name}.py"
    else:
        (tmp_path / name).mkdir()
        place = tmp_path / name
        if shape == "package":
            place = place / "__init__.py"
            place.write_text("")
    run = python("import astralora", tmp_path, tmp_path)
    if shape == "folder":
        # A bare folder never wins over a package, wherever it stands on the path.
        assert run.returncode == 0, run.stderr
        return
    message = run.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: astralora needs its own package '{name}'")
    assert str(place) in message
