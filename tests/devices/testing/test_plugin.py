"""Test the pytest plugin as other projects use it: each test runs pytest in a new process and a new folder."""

import subprocess
import sys
from pathlib import Path

from astralora.devices.testing import CHECKS

TESTS = """
import astralora as al
import pytest
import torch

from astralora.devices.testing import DeviceConformance


def test_simulated(simulated_device):
    session = simulated_device("mrr", in_features=4, out_features=2)
    assert session.apply(torch.ones(8), torch.zeros(1, 4)).shape == (1, 2)


def test_mock(mock_device):
    device = mock_device(answers=[[[1.0, 2.0, 3.0]]])
    with al.Session(device) as session:
        assert session.apply(torch.zeros(12), torch.zeros(1, 4)).tolist() == [[1.0, 2.0, 3.0]]
    device.assert_programmed([0.0] * 12)


def test_faulty(faulty_device):
    device = faulty_device("matvec", "timeout=1", in_features=4, out_features=3)
    device.open()
    with pytest.raises(al.DeviceTimeout):
        device.program(torch.zeros(12))


def test_port(emulated_port):
    with al.open_device("frame-mvm", port=emulated_port("matvec")) as session:
        assert session.apply(torch.ones(12), torch.ones(1, 4)).tolist() == [[4.0, 4.0, 4.0]]


def test_bench(hardware_device):
    assert hardware_device.spec.in_features == 4
    hardware_device.program(torch.zeros(12))


class TestChip(DeviceConformance):
    def make_device(self):
        return al.make_device("matvec", in_features=4, out_features=3)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_lab.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rs", "--strict-markers", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_fixtures_work_and_hardware_is_skipped_unless_named(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "needs hardware: name it with --astralora-bench BENCH.toml" in done.stdout
    # Four fixtures, and all checks but five that do not apply: there is no link, no output range, and no levels.
    assert done.stdout.splitlines()[-1].startswith(f"{4 + len(CHECKS) - 5} passed"), done.stdout


def test_hardware_tests_run_on_the_bench_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "bench.toml").write_text('device = "matvec"\n\n[options]\nin_features = 4\nout_features = 3\n')
    done = run(tmp_path, "--astralora-bench", "bench.toml", "-m", "hardware")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 passed")


def test_a_missing_bench_is_described_in_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "--astralora-bench", "nothing.toml", "-k", "bench")
    assert done.returncode == 4
    assert done.stderr.strip() == (
        "ERROR: --astralora-bench nothing.toml: the bench file nothing.toml cannot be read: No such file or directory"
    )
    assert done.stdout == ""


def test_a_device_that_cannot_be_opened_is_described_in_one_sentence(tmp_path: Path) -> None:
    done = run(tmp_path, "--astralora-bench", "no-such-device", "-k", "bench")
    assert done.returncode == 1
    assert "--astralora-bench no-such-device: there is no device named 'no-such-device'" in done.stdout
    assert "Traceback" not in done.stdout


def test_options_marks_and_fixtures_of_a_project_take_precedence(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import pytest\n\n"
        "def pytest_addoption(parser):\n    parser.addoption('--device', default='cpu')\n\n"
        "@pytest.fixture\ndef hardware_device(request):\n    return request.config.getoption('--device')\n"
    )
    (tmp_path / "test_own.py").write_text(
        "import pytest\n\n@pytest.mark.hardware\ndef test_mark():\n    pass\n\n"
        "def test_fixture(hardware_device):\n    assert hardware_device == 'cuda'\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--device", "cuda", "test_own.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith("2 passed")


def test_torch_is_not_imported_for_tests_without_devices(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("import sys\n\ndef test_other():\n    assert 'torch' not in sys.modules\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_other.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
