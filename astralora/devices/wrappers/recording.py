"""A session with hardware as a file, and a device that answers from it.

A recording is one safetensors file. Its tensors are controls, inputs and outputs, each kept once; its metadata holds,
as JSON under ``astralora``, the format's version, the spec, and the operations in their order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from .. import errors
from ..device import Device
from ..errors import DeviceError, NotConnected
from ..files import write_atomically
from ..registry import make_inner
from ..spec import DeviceSpec

__all__ = ["RecordingDevice", "ReplayDevice", "make_recording"]

_FORMAT: Final = 1
_KEY: Final = "astralora"


class RecordingDevice:
    """Passes everything on to a device, and writes down what was asked and answered, faults included.

    The file is written when the device is closed, and by `save`: whole or not at all.

    Args:
        device: what is recorded.
        path: of the recording; replaced if it exists.
    """

    def __init__(self, device: Device, path: str | Path) -> None:
        self.device = device
        self.path = Path(path)
        self._tensors: dict[str, Tensor] = {}
        self._operations: list[dict[str, Any]] = []

    @property
    def spec(self) -> DeviceSpec:
        """What the recorded device promises."""
        return self.device.spec

    def open(self) -> None:
        """Connect."""
        self.device.open()

    def close(self) -> None:
        """Disconnect, and write the file."""
        try:
            self.device.close()
        finally:
            if self._operations:
                self.save()

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        entry = {"operation": "program", "controls": self._keep(controls)}
        self._record(entry, lambda: self.device.program(controls))

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features)."""
        entry = {"operation": "query", "inputs": self._keep(inputs)}
        outputs: Tensor = self._record(entry, lambda: self.device.query(inputs))
        entry["outputs"] = self._keep(outputs)
        return outputs

    def save(self) -> None:
        """Write what has been recorded so far.

        Raises:
            DeviceError: the file cannot be written.
        """
        index = {
            "format": _FORMAT,
            "spec": self.spec.model_dump(mode="json"),
            "operations": self._operations,
        }
        try:
            write_atomically(self.path, save_tensors(self._tensors, {_KEY: json.dumps(index)}))
        except OSError as error:
            raise DeviceError(f"the recording {self.path} cannot be written: {error.strerror or error}") from error

    def _record(self, entry: dict[str, Any], act: Any) -> Any:
        # Before it is done: what fails in a way of its own has been asked all the same.
        self._operations.append(entry)
        try:
            return act()
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
    """Another registered device, whose session is written to a file that 'replay' answers from.

    Args:
        device: a registered name, or a bench file.
        path: of the recording.
        **options: for that device; sizes, impairments and seed only if it takes them.
    """
    return RecordingDevice(make_inner(device, options), path)


class ReplayDevice:
    """Answers from a recording, exactly what the recorded device answered.

    In the order of the recording, every request has to be the recorded one, to the bit; the first that is not is an
    error that says where the two part. By content, the order is free: a request is answered as the same controls and
    inputs were, each time with the next of their recorded answers, and from the first again after the last.

    Args:
        path: of a recording.
        match: ``"order"`` or ``"content"``.

    Raises:
        DeviceError: there is no recording at that path.
    """

    def __init__(self, path: str | Path, match: Literal["order", "content"] = "order") -> None:
        if match not in ("order", "content"):
            raise ValueError(f"match must be 'order' or 'content', not {match!r}")
        self.path = Path(path)
        self.match = match
        self._spec, self._operations, self._tensors = _load(self.path)
        self._place = 0
        self._is_open = False
        self._controls: str | None = None
        self._answers = _by_content(self._operations) if match == "content" else {}

    @property
    def spec(self) -> DeviceSpec:
        """What the recorded device promised."""
        return self._spec

    @property
    def remaining(self) -> int:
        """Operations of the recording that have not been asked for yet, in its order."""
        return len(self._operations) - self._place

    def open(self) -> None:
        """Begin; does nothing when open already. The recording goes on where it was, as the hardware would."""
        self._is_open = True

    def close(self) -> None:
        """End; does nothing when closed already."""
        self._is_open, self._controls = False, None

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), as recorded."""
        self._require(self._is_open, "program", "is closed; call open first")
        if self.match == "order":
            _raise_recorded(self._next("program", "controls", controls))
        self._controls = _name(controls)

    def query(self, inputs: Tensor) -> Tensor:
        """The recorded answer: (batch, in_features) -> (batch, out_features)."""
        self._require(self._is_open, "query", "is closed; call open first")
        self._require(self._controls is not None, "query", "no controls are set; call program first")
        if self.match == "order":
            entry = self._next("query", "inputs", inputs)
        else:
            answers = self._answers.get((self._controls or "", _name(inputs)))
            if answers is None:
                raise self._fault("query", "the recording holds no answer to these controls and inputs")
            entry = answers.pop(0)
            answers.append(entry)
        _raise_recorded(entry)
        return self._tensors[entry["outputs"]].clone().to(inputs.device)

    def _next(self, operation: str, what: str, given: Tensor) -> dict[str, Any]:
        if self._place >= len(self._operations):
            raise self._fault(operation, f"the recording ends after {len(self._operations)} operations")
        entry = self._operations[self._place]
        where = f"operation {self._place} of {len(self._operations)}"
        if entry["operation"] != operation:
            raise self._fault(operation, f"{where} was {entry['operation']} in the recording, and is {operation} now")
        if entry[what] != _name(given):
            raise self._fault(operation, f"{where}: {_difference(what, self._tensors[entry[what]], given)}")
        self._place += 1
        return entry

    def _require(self, condition: bool, operation: str, otherwise: str) -> None:
        if not condition:
            raise NotConnected(otherwise, device=self._spec.name, operation=operation)

    def _fault(self, operation: str, message: str) -> DeviceError:
        # No fault of a link: it would not pass if it were tried again.
        return DeviceError(f"{message} ({self.path})", device=self._spec.name, operation=operation)


def _name(tensor: Tensor) -> str:
    """A name that tells contents, shapes and types apart."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.blake2b(data.numpy().tobytes(), digest_size=16)
    digest.update(f"{data.dtype} {tuple(data.shape)}".encode())
    return digest.hexdigest()


def _difference(what: str, recorded: Tensor, given: Tensor) -> str:
    """Where two tensors part, in words."""
    if recorded.shape != given.shape or recorded.dtype != given.dtype:
        return (
            f"{what} of shape {tuple(recorded.shape)} and {recorded.dtype} were recorded, "
            f"and {tuple(given.shape)} of {given.dtype} are given"
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


def _by_content(operations: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}
    controls = ""
    for entry in operations:
        if entry["operation"] == "program":
            controls = entry["controls"]
        elif "outputs" in entry:
            answers.setdefault((controls, entry["inputs"]), []).append(entry)
    return answers


def _load(path: Path) -> tuple[DeviceSpec, list[dict[str, Any]], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            index = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if index["format"] != _FORMAT:
            raise DeviceError(f"{path} is a recording of format {index['format']}, and format {_FORMAT} is read here")
        operations = index["operations"]
        for entry in operations:
            names = [entry[key] for key in ("controls", "inputs", "outputs") if key in entry]
            if entry["operation"] not in ("program", "query") or not all(name in tensors for name in names):
                raise KeyError(entry["operation"])
            if "outputs" not in entry and "error" not in entry and entry["operation"] == "query":
                raise KeyError("outputs")
        return DeviceSpec.model_validate(index["spec"]), operations, tensors
    except FileNotFoundError:
        raise DeviceError(f"there is no recording {path}") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ValidationError) as error:
        raise DeviceError(f"{path} is no recording: {type(error).__name__}: {error}") from None
