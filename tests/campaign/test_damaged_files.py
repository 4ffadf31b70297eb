"""Damage every kind of file that a command reads, a few hundred times each."""

from pathlib import Path

import pytest

from ..damaged_files import KINDS_OF_FILES, make_samples, run_damaged

pytestmark = pytest.mark.campaign


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_samples(tmp_path_factory.mktemp("samples"))


@pytest.mark.parametrize("name", KINDS_OF_FILES)
def test_a_damaged_file_is_used_or_refused_in_one_sentence(
    name: str, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes = run_damaged(name, samples, tmp_path, count=150)
    assert outcomes["refused"] > 0
    print(f"{name}: {dict(outcomes)}")
