"""The template of a driver package: it installs on its own, registers its device, and passes the kit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[2] / "examples" / "driver-template"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the template, and install its package beside it from a wheel, as a user would."""
    folder = tmp_path_factory.mktemp("a lab's folder")
    shutil.copytree(TEMPLATE, folder / "copy", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    # What it depends on is here already, and nothing is to be downloaded.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--target", str(folder / "site"), str(folder / "copy")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # The package that is tested now comes from the same place as in this process.
    places = [str(folder / "site"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder / "copy",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_its_device_is_found_by_everyone(installed: Path) -> None:
    listed = json.loads(run(installed, "astralora", "devices", "--json").stdout)
    (entry,) = (entry for entry in listed if entry["name"] == "bench-chip")
    assert entry["source"] == "astralora-bench-chip 0.1.0"
    assert entry["problem"] is None
    assert entry["summary"] == "Crossbar of 8 x 8 heaters behind a serial port"


def test_its_own_tests_pass(installed: Path) -> None:
    done = run(installed, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout
