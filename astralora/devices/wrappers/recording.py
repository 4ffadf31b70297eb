"""Record the operations of a device in a file, and replay them without the device.

A recording is one safetensors file. Its tensors are controls, inputs and outputs; equal tensors are stored once. Its
metadata has a JSON text under ``astralora``: the version of the format, the spec, and the operations in their order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save as save_tensors
from torch import Tensor

from .. import errors
from ..capabilities import Composite, InProcess, Reciprocal, Rehearses
from ..device import Device
from ..errors import DeviceError, NotConnected
from ..files import file_name, write_file
from ..parsing import parse_json, read_tensors
from ..registry import make_inner
from ..spec import DeviceSpec
from ..validation import first_problem, printable
from ..wrapper import LAW, DeviceWrapper

__all__ = ["RecordingDevice", "ReplayDevice", "make_recording"]

_FORMAT: Final = 1
_KEY: Final = "astralora"


class RecordingDevice(DeviceWrapper):
    """Forward all operations to a device, and record requests, answers and faults.

    `close` and `save` write the file atomically. Settings that run in one call are recorded one by one. The clock, the
    state and the law of the device are forwarded unchanged.

    Args:
        device: device to record.
        path: path of the recording; an existing file is replaced.
    """

    adapts: ClassVar[tuple[type, ...]] = (Reciprocal,)
    forwards: ClassVar[tuple[type, ...]] = (*DeviceWrapper.forwards, *LAW, Composite, Rehearses)

    def __init__(self, device: Device, path: str | Path) -> None:
        super().__init__(device)
        self.path = Path(path)
        self._tensors: dict[str, Tensor] = {}
        self._operations: list[dict[str, Any]] = []

    def close(self) -> None:
        """Disconnect, and write the file."""
        try:
            self.device.close()
        finally:
            if self._operations:
                self.save()

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        with self._recorded({"operation": "program", "controls": self._keep(controls)}):
            self.device.program(controls)

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        entry: dict[str, Any] = {"operation": "query", "inputs": self._keep(inputs)}
        with self._recorded(entry):
            outputs = self.device.query(inputs)
        entry["outputs"] = self._keep(outputs)
        return outputs

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Pass vectors backwards through the device: (batch, out_features) -> (batch, in_features)."""
        entry: dict[str, Any] = {"operation": "query_adjoint", "inputs": self._keep(outputs)}
        with self._recorded(entry):
            answers = self.behind(Reciprocal).query_adjoint(outputs)
        entry["outputs"] = self._keep(answers)
        return answers

    def save(self) -> None:
        """Write the operations recorded so far.

        Raises:
            DeviceError: the file cannot be written.
        """
        index = {
            "format": _FORMAT,
            "spec": self.spec.model_dump(mode="json"),
            "in_process": self.provider(InProcess) is not None,
            "operations": self._operations,
        }
        write_file(self.path, save_tensors(self._tensors, {_KEY: json.dumps(index)}), "the recording")

    @contextmanager
    def _recorded(self, entry: dict[str, Any]) -> Generator[None]:
        # Appended before the call, because a request that fails is recorded too.
        self._operations.append(entry)
        try:
            yield
        except DeviceError as error:
            entry["error"] = {"type": type(error).__name__, "message": error.message}
            raise
        except BaseException:
            self._operations.pop()
            raise

    def _keep(self, tensor: Tensor) -> str:
        name = _name(tensor)
        if name not in self._tensors:
            self._tensors[name] = tensor.detach().cpu().contiguous().clone()
        return name


def make_recording(device: str, path: str, **options: Any) -> RecordingDevice:
    """Make a registered device that records its operations in a file, which the device 'replay' can read.

    Args:
        device: a registered name, or a bench file.
        path: path of the recording.
        **options: options of the device; sizes, impairments and seed are left out if it does not take them.
    """
    return RecordingDevice(make_inner(device, options), path)


class ReplayDevice:
    """Answer requests with the recorded answers of a device, bit for bit.

    With ``match="order"``, every request must equal the recorded request bit for bit. A request that differs raises an
    error that names the place. With ``match="content"``, requests may come in any order. The answer is a recorded
    answer to the same controls and inputs. If there are several answers, they are returned one after the other, and
    the sequence starts again after the last one.

    Args:
        path: path of a recording.
        match: ``"order"`` or ``"content"``.

    Raises:
        DeviceError: there is no recording at that path.
    """

    def __init__(self, path: str | Path, match: Literal["order", "content"] = "order") -> None:
        if match not in ("order", "content"):
            raise ValueError(f"match must be 'order' or 'content', not {match!r}")
        self.path = Path(path)
        self.match = match
        self._spec, self._in_process, self._operations, self._tensors = _load(self.path)
        self._place = 0
        self._is_open = False
        self._controls: str | None = None
        self._answers = _by_content(self._operations) if match == "content" else {}

    @property
    def spec(self) -> DeviceSpec:
        """Return the spec of the recorded device."""
        return self._spec

    @property
    def capabilities(self) -> tuple[type, ...]:
        """Return `Reciprocal` if the recording contains queries of the reverse port, and `InProcess` as recorded.

        So a session sends the same requests after a recorded fault as it sent to the recorded device.
        """
        reverse = any(entry["operation"] == "query_adjoint" for entry in self._operations)
        return (Reciprocal,) * reverse + (InProcess,) * self._in_process

    @property
    def remaining(self) -> int:
        """Return the number of recorded operations that have not been requested yet."""
        return len(self._operations) - self._place

    def open(self) -> None:
        """Start the replay, or continue it after the last answered request; do nothing when open already."""
        self._is_open = True

    def close(self) -> None:
        """Stop the replay; do nothing when closed already."""
        self._is_open, self._controls = False, None

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), as recorded."""
        self._require(self._is_open, "program", "is closed; call open first")
        if self.match == "order":
            _raise_recorded(self._next("program", "controls", controls))
        self._controls = _name(controls)

    def query(self, inputs: Tensor) -> Tensor:
        """Return the recorded outputs: (batch, in_features) -> (batch, out_features)."""
        return self._answer("query", inputs)

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Return the recorded answers of the reverse port: (batch, out_features) -> (batch, in_features)."""
        return self._answer("query_adjoint", outputs)

    def _answer(self, operation: str, vectors: Tensor) -> Tensor:
        self._require(self._is_open, operation, "is closed; call open first")
        self._require(self._controls is not None, operation, "no controls are set; call program first")
        if self.match == "order":
            entry = self._next(operation, "inputs", vectors)
        else:
            answers = self._answers.get((operation, self._controls or "", _name(vectors)))
            if answers is None:
                raise self._fault(operation, "the recording contains no answer to these controls and inputs")
            entry = answers.pop(0)
            answers.append(entry)
        _raise_recorded(entry)
        return self._tensors[entry["outputs"]].clone().to(vectors.device)

    def _next(self, operation: str, what: str, given: Tensor) -> dict[str, Any]:
        if self._place >= len(self._operations):
            raise self._fault(operation, f"the recording ends after {len(self._operations)} operations")
        entry = self._operations[self._place]
        where = f"operation {self._place} of {len(self._operations)}"
        if entry["operation"] != operation:
            raise self._fault(operation, f"{where} is {entry['operation']} in the recording, but is {operation} now")
        if entry[what] != _name(given):
            raise self._fault(operation, f"{where}: {_difference(what, self._tensors[entry[what]], given)}")
        self._place += 1
        return entry

    def _require(self, condition: bool, operation: str, otherwise: str) -> None:
        if not condition:
            raise NotConnected(otherwise, device=self._spec.name, operation=operation)

    def _fault(self, operation: str, message: str) -> DeviceError:
        # Not the class of a link fault, because repeating the operation would not help.
        return DeviceError(f"{message} ({self.path})", device=self._spec.name, operation=operation)


def _name(tensor: Tensor) -> str:
    """Return a name for a tensor that is a hash of its values, shape and dtype."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.blake2b(data.numpy().tobytes(), digest_size=16)
    digest.update(f"{data.dtype} {tuple(data.shape)}".encode())
    return digest.hexdigest()


def _difference(what: str, recorded: Tensor, given: Tensor) -> str:
    """Describe where two tensors differ."""
    if recorded.shape != given.shape or recorded.dtype != given.dtype:
        return (
            f"the recorded {what} have shape {tuple(recorded.shape)} and {recorded.dtype}, "
            f"but the given ones have shape {tuple(given.shape)} and {given.dtype}"
        )
    wrong = recorded != given.to(recorded.device)
    first = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{what} differ from the recorded ones in {int(wrong.sum())} of {wrong.numel()} values, first at "
        f"{list(first)}: {float(recorded[first]):.9g} was recorded, {float(given[first]):.9g} is given; "
        f"the largest difference is {float((recorded - given).abs().max()):.3g}"
    )


def _raise_recorded(entry: Mapping[str, Any]) -> None:
    problem = entry.get("error")
    if problem is not None:
        kind = getattr(errors, problem["type"], DeviceError) if problem["type"] in errors.__all__ else DeviceError
        raise kind(f"{problem['message']} (as recorded)")


def _by_content(operations: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    answers: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    controls = ""
    for entry in operations:
        if entry["operation"] == "program":
            controls = entry["controls"]
        elif "outputs" in entry:
            answers.setdefault((entry["operation"], controls, entry["inputs"]), []).append(entry)
    return answers


def _load(path: Path) -> tuple[DeviceSpec, bool, list[dict[str, Any]], dict[str, Tensor]]:
    """Load a recording.

    Raises:
        DeviceError: the file cannot be read, or it is not a valid recording.
    """
    if not path.exists():
        raise DeviceError(f"there is no recording {printable(str(path))}")
    subject = file_name(path, "the recording")
    content = read_tensors(path, "the recording")
    if _KEY not in content.metadata:
        raise DeviceError(f"{subject} has no list of operations; it is another safetensors file")
    index = parse_json(content.metadata[_KEY], subject)
    version = index.get("format") if isinstance(index, dict) else None
    if isinstance(version, int) and version > _FORMAT:
        raise DeviceError(f"{subject} has format {version}, but this astralora reads format {_FORMAT}")
    for name, tensor in content.tensors.items():
        if _name(tensor) != name:
            raise DeviceError(f"{subject} is damaged: the values of a tensor differ from the recorded ones")
    try:
        found = _Index.model_validate(index)
        for place, entry in enumerate(found.operations):
            entry.check(place, content.tensors, found.spec)
    except ValidationError as error:
        raise DeviceError(f"{subject} is not valid: {first_problem(error)}") from None
    except ValueError as error:
        raise DeviceError(f"{subject} is not valid: {error}") from None
    operations = [entry.model_dump(exclude_none=True) for entry in found.operations]
    return found.spec, found.in_process, operations, content.tensors


class _Fault(BaseModel):
    """Describe the error of a recorded operation."""

    model_config = ConfigDict(extra="forbid")

    type: str
    message: str


class _Operation(BaseModel):
    """Describe a recorded operation; tensors are given by name."""

    model_config = ConfigDict(extra="forbid")

    operation: Literal["program", "query", "query_adjoint"]
    controls: str | None = None
    inputs: str | None = None
    outputs: str | None = None
    error: _Fault | None = None

    def check(self, place: int, tensors: Mapping[str, Tensor], spec: DeviceSpec) -> None:
        """Refuse an operation that lacks a tensor, or whose answer does not fit the spec.

        The request may have any shape, because the device may have refused it.

        Raises:
            ValueError: a tensor is missing or has a wrong shape.
        """
        needed = ["controls"] if self.operation == "program" else ["inputs"]
        if self.operation != "program" and self.error is None:
            needed.append("outputs")
        for what in needed:
            if getattr(self, what) not in tensors:
                raise ValueError(f"the {what} of operation {place} are missing")
        if "outputs" in needed:
            shape = tuple(tensors[self.outputs or ""].shape)
            columns = spec.in_features if self.operation == "query_adjoint" else spec.out_features
            if len(shape) != 2 or shape[1] != columns:
                raise ValueError(
                    f"the outputs of operation {place} have shape {shape}, and must have {columns} columns"
                )


class _Index(BaseModel):
    """Describe the operations of a recording."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1]
    spec: DeviceSpec
    in_process: bool = True
    operations: list[_Operation]
