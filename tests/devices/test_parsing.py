"""Test that JSON, TOML and safetensors are parsed or refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from astralora.common.errors import ConfigurationError
from astralora.devices import DeviceError
from astralora.devices.parsing import parse_json, parse_tensors, parse_toml, read_json, read_tensors, read_toml

DEEP = 5000


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is empty, where JSON is expected"),
        (" \n", "is empty, where JSON is expected"),
        ("{", "is not JSON: Expecting property name"),
        ("\0", "is not JSON: Expecting value"),
        ('{"a": NaN}', "is not JSON: NaN is not a number in JSON; write null"),
        ('{"a": [-Infinity]}', "is not JSON: -Infinity is not a number in JSON"),
        ('{"a": 1e999}', "is not JSON: a number is larger than"),
        ('{"a": 9223372036854775808}', "is not JSON: a whole number has more than 64 bits"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON: a whole number has more than 64 bits"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "is not JSON: the key 'c' is given twice"),
        ("[" * DEEP, "is not valid JSON: it is nested more than 64 levels deep"),
        ("[" * 70 + "]" * 70, "is not valid JSON: it is nested more than 64 levels deep"),
        ('{"a": "\\ud800"}', "is not JSON: a text has half of a surrogate pair"),
    ],
)
def test_wrong_json_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse_json(text, "the file", error=ConfigurationError)
    assert str(error.value).startswith(f"the file {complaint}")
    assert str(error.value).isprintable()


def test_data_of_other_programs_may_have_any_number() -> None:
    found = parse_json('{"a": NaN, "b": 99999999999999999999}', "line 1", any_number=True)
    assert found["b"] == 99999999999999999999


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a", "is not TOML: Expected '=' after a key"),
        ("a = 1\na = 2", "is not TOML: Cannot overwrite a value"),
        ("a = \0", "is not TOML: Invalid value"),
        ("a = 9223372036854775808", "is not TOML: a whole number has more than 64 bits"),
        ("a = " + "9" * 5000, "is not TOML: a whole number has more than 64 bits"),
        ("a = " + "[" * DEEP, "is not valid TOML: it is nested more than 64 levels deep"),
        ("a." * DEEP + "a = 1", "is not valid TOML: it is nested more than 64 levels deep"),
        ("a = 2020-13-40", "is not TOML: "),
    ],
)
def test_wrong_toml_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(DeviceError) as error:
        parse_toml(text, "the file")
    assert str(error.value).startswith(f"the file {complaint}")
    assert str(error.value).isprintable()


def test_a_file_must_hold_an_object(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for text, kind in (("[]", "a list"), ("1", "a number"), ('"a"', "a text"), ("null", "null"), ("true", "true or")):
        path.write_text(text)
        with pytest.raises(DeviceError, match=f"must contain a JSON object with keys and values, not {kind}"):
            read_json(path)
    path.write_text("")
    assert read_toml(path) == {}


def header(entry: dict[str, Any] | str, data: bytes = b"") -> bytes:
    text = (entry if isinstance(entry, str) else json.dumps(entry)).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\xff" * 8,
        (10**18).to_bytes(8, "little") + b"{}",
        header("[]"),
        header("{" * DEEP),
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"0000"),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000"),
        header({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}}, b"0000"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"0000"),
        header({"__metadata__": {"a": 1}}),
        save({"a": torch.ones(3)})[:-1],
    ],
)
def test_a_broken_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(DeviceError, match=r"the file is not a safetensors file: .") as error:
        parse_tensors(data, "the file")
    assert str(error.value).isprintable()


def test_tensors_are_read_with_their_metadata(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(save({"a": torch.ones(2, 3), "b": torch.zeros(0)}, {"kind": "test"}))
    found = read_tensors(tmp_path / "x")
    assert torch.equal(found.tensors["a"], torch.ones(2, 3))
    assert found.metadata == {"kind": "test"}
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(DeviceError, match="is empty, where tensors are expected"):
        read_tensors(tmp_path / "x")
