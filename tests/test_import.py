"""What importing astralora does, and does not."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import astralora as al
import astralora.devices as devices


def python(code: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in al.__all__ if not hasattr(al, name)] == []
    assert al.open_device is devices.open_device


def test_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    run = python("import torch; a = torch.random.get_rng_state(); import astralora.simulators, astralora.drivers\n"
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
        "astralora.simulators",
        "astralora.drivers",
        "tensorboard",
        "serial",
        "accelerate",
        "transformers",
        "astralora.optim",
        "astralora.lowrank.oialr",
    ]
    before = python("import torch, pydantic, sys; print(*sys.modules)", tmp_path).stdout.split()
    after = python("import astralora.devices, sys; print(*sys.modules)", tmp_path).stdout.split()
    assert [name for name in late if name in after and name not in before] == []


FOREIGN = """
import devices, drivers, simulators
assert devices.OURS and drivers.OURS and simulators.OURS
import astralora as al
with al.open_device("mrr", in_features=4, out_features=2) as session:
    pass
from astralora import devices as contract, drivers, simulators
import devices
assert devices.OURS and contract.Session is al.Session
"""


FOREIGN_FOLDER = """
import devices.chip
import astralora as al
assert devices.chip.OURS and al.Session
"""


@pytest.mark.parametrize("shape", ["module", "package", "folder"])
def test_packages_of_the_same_names_in_a_project_are_the_ones_imported_there(shape: str, tmp_path: Path) -> None:
    for name in ("devices", "simulators", "drivers"):
        if shape == "module":
            (tmp_path / f"{name}.py").write_text("OURS = True\n")
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / ("__init__.py" if shape == "package" else "chip.py")).write_text("OURS = True\n")
    run = python(FOREIGN if shape != "folder" else FOREIGN_FOLDER, tmp_path)
    assert run.returncode == 0, run.stderr


def test_the_wheel_has_one_package(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(root)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert top == {"astralora", f"astralora-{al.__version__}.dist-info"}
