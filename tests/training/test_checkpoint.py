"""Test saving and loading of nested state."""

from pathlib import Path
from typing import Any

import pytest
import torch

from astralora import ConfigurationError
from astralora.devices.files import write_atomically
from astralora.training.checkpoint import load_state, save_state

STATE: dict[str, Any] = {
    "tensors": [torch.arange(6.0).reshape(2, 3), torch.tensor(1.5, dtype=torch.float64)],
    "bytes": torch.randint(0, 256, (50,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    "empty": torch.empty(0, 4),
    "numbers": {"one": 1, "big": 2**62, "half": 0.1, "yes": True, "none": None, "text": "a"},
    "by index": {0: torch.ones(2), 1: {"betas": (0.9, 0.999)}},
}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_state_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    save_state(tmp_path / "checkpoint", STATE)
    assert equal(load_state(tmp_path / "checkpoint"), STATE)


def test_tensors_that_share_memory_are_loaded_separately(tmp_path: Path) -> None:
    base = torch.arange(4.0)
    save_state(tmp_path, {"a": base, "b": base[1:3]})
    state = load_state(tmp_path)
    assert state is not None
    assert state["b"].tolist() == [1.0, 2.0]


def test_a_later_state_replaces_the_earlier_and_leaves_nothing_behind(tmp_path: Path) -> None:
    save_state(tmp_path, {"step": 1, "w": torch.zeros(3)})
    save_state(tmp_path, {"step": 2, "w": torch.ones(3)})
    state = load_state(tmp_path)
    assert state is not None
    assert state["step"] == 2
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_a_crash_before_the_index_is_replaced_leaves_the_earlier_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import astralora.training.checkpoint as module

    save_state(tmp_path, {"step": 1, "w": torch.zeros(3)})

    def crash_at_index(path: Path, content: Any) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write_atomically(path, content)

    monkeypatch.setattr(module, "write_atomically", crash_at_index)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, {"step": 2, "w": torch.ones(3)})
    state = load_state(tmp_path)
    assert state is not None
    assert state["step"] == 1


def test_an_empty_folder_loads_none(tmp_path: Path) -> None:
    assert load_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize("damage", ["index", "tensors", "missing", "format"])
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    save_state(tmp_path, STATE)
    index = tmp_path / "state.json"
    tensors = next(tmp_path.glob("*.safetensors"))
    if damage == "index":
        index.write_text(index.read_text()[:100])
    elif damage == "tensors":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(bytes(content))
    elif damage == "missing":
        tensors.unlink()
    else:
        index.write_text(index.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(ConfigurationError, match=r"damaged|has format 3"):
        load_state(tmp_path)


def test_an_index_cannot_name_a_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"")
    folder = tmp_path / "checkpoint"
    save_state(folder, STATE)
    index = folder / "state.json"
    name = next(folder.glob("*.safetensors")).name
    index.write_text(index.read_text().replace(name, "../secret.safetensors"))
    with pytest.raises(ConfigurationError, match="damaged"):
        load_state(folder)


def test_unsupported_values_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot hold a function"):
        save_state(tmp_path, {"f": lambda: None})
