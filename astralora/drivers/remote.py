"""Drive a device on another machine, through a Ray actor on the host of the chip."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import (
    Clock,
    Device,
    DeviceError,
    DeviceSpec,
    DeviceTimeout,
    DeviceWrapper,
    Flushes,
    NotConnected,
    ProgramsMany,
    Reciprocal,
    Thermometer,
    capability_of,
    errors,
)
from ..devices.extras import require
from ..devices.memory import aligned
from ..devices.ownership import Lock, Ownership, StaysInProcess
from ..devices.registry import make_inner
from ..devices.safety import undo_open

__all__ = ["RemoteDevice", "open_remote"]

_log = logging.getLogger(__name__)

# Seconds between two queries of the cluster's resources, while waiting for a chip.
_POLL_SECONDS: Final = 0.2

# First item of every answer of the actor.
_OK: Final = "ok"
_ERROR: Final = "error"

# Capabilities that a remote device can have, by the name that the host reports.
_REMOTE: Final[dict[str, type]] = {
    protocol.__name__: protocol for protocol in (Clock, Flushes, ProgramsMany, Reciprocal, Thermometer)
}

_Array = NDArray[Any]
_Arguments = ParamSpec("_Arguments")
_Capability = TypeVar("_Capability")


def _reported(
    method: Callable[Concatenate[_Host, _Arguments], object],
) -> Callable[Concatenate[_Host, _Arguments], tuple[Any, ...]]:
    """Make a method return its result or its error as a tuple, which is independent of the version of astralora."""

    @functools.wraps(method)
    def call(host: _Host, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> tuple[Any, ...]:
        try:
            return _OK, method(host, *args, **kwargs)
        except Exception as error:
            return _error_report(error)

    return call


class _Host:
    """Operate the device on the host of the chip; Ray runs one call at a time."""

    def __init__(self, device: str, options: dict[str, Any]) -> None:
        self._made: Device | None = None
        self._problem: tuple[str, ...] = ()
        try:
            self._made = make_inner(device, options)
        except Exception as error:
            self._problem = _error_report(error)

    @property
    def _device(self) -> Device:
        assert self._made is not None
        return self._made

    def describe(self) -> tuple[Any, ...]:
        """Return the spec as JSON, and the names of the capabilities that a remote device can have."""
        if self._made is None:
            return self._problem
        names = [name for name, protocol in _REMOTE.items() if capability_of(self._made, protocol) is not None]
        return _OK, self._made.spec.model_dump_json(), names

    @_reported
    def open(self) -> None:
        self._device.open()

    @_reported
    def close(self) -> None:
        self._device.close()

    @_reported
    def program(self, controls: _Array) -> None:
        self._device.program(_tensor(controls))

    @_reported
    def query(self, inputs: _Array) -> _Array:
        return _array(self._device.query(_tensor(inputs)))

    @_reported
    def query_each(self, controls: _Array, inputs: _Array) -> _Array:
        return _array(_required(self._device, ProgramsMany).query_each(_tensor(controls), _tensor(inputs)))

    @_reported
    def query_adjoint(self, outputs: _Array) -> _Array:
        return _array(_required(self._device, Reciprocal).query_adjoint(_tensor(outputs)))

    @_reported
    def flush(self) -> None:
        _required(self._device, Flushes).flush()

    @_reported
    def clock_seconds(self) -> float:
        return _required(self._device, Clock).clock_seconds

    @_reported
    def wait(self, seconds: float) -> None:
        _required(self._device, Clock).wait(seconds)

    @_reported
    def temperature_celsius(self) -> float:
        return _required(self._device, Thermometer).temperature_celsius


class _Link:
    """Start, call and stop the actor.

    Args:
        device: registered name or bench file on the host of the actor.
        options: options of the device's factory.
        resource: custom resource of the chip; None for any host.
        patience: longest time to wait until the chip is available, in seconds.

    Attributes:
        ownership: process that started the actor, and the lock of the link.
    """

    def __init__(self, device: str, options: dict[str, Any], resource: str | None, patience: float) -> None:
        self._ray = require("ray", "remote devices need", "ray")
        self._device, self._options = device, options
        self._resource = resource
        self.patience = patience
        self.ownership = Ownership()
        self._actor: Any = None

    def start(self, *, was_there: bool) -> tuple[DeviceSpec, tuple[type, ...]]:
        """Wait until the chip is available, and start an actor on its host.

        Args:
            was_there: whether to wait if no host offers the chip; otherwise this raises an error at once.

        Returns:
            The spec of the device, and its capabilities.
        """
        self.ownership.claim(self._device)
        if self._resource is not None:
            self._await(self._resource, was_there)
        wanted = {} if self._resource is None else {self._resource: 1.0}
        host = self._ray.remote(_Host).options(num_cpus=0, resources=wanted, max_restarts=0, max_task_retries=0)
        self._actor = host.remote(self._device, self._options)
        try:
            text, names = self.call("open", lambda actor: actor.describe.remote(), timeout=self.patience)
        except BaseException:
            self.stop()
            raise
        return DeviceSpec.model_validate_json(text), tuple(_REMOTE[name] for name in names if name in _REMOTE)

    def call(self, operation: str, send: Callable[[Any], Any], *, timeout: float) -> tuple[Any, ...]:
        """Call the actor, and raise in this process the errors that were raised in the actor."""
        with self.ownership.lock:
            return self._call(operation, send, timeout)

    def _call(self, operation: str, send: Callable[[Any], Any], timeout: float) -> tuple[Any, ...]:
        ray = self._ray
        if self._actor is None:
            raise self.fault(NotConnected, operation, "the actor is lost; open the device again")
        try:
            kind, *rest = ray.get(send(self._actor), timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            raise self.fault(DeviceTimeout, operation, f"did not answer within {timeout:g} s") from None
        except ray.exceptions.RayError as error:
            self.stop()
            first = (str(error).splitlines() or [""])[0]
            raise self.fault(NotConnected, operation, f"the actor is lost ({first}); open the device again") from error
        if kind == _ERROR:
            name, message, device, where = rest
            error_type = getattr(errors, name) if name in errors.__all__ else DeviceError
            raise error_type(message, device=device or self._device, operation=where or operation)
        return tuple(rest)

    def stop(self) -> None:
        """Stop the actor, which frees the chip."""
        actor, self._actor = self._actor, None
        if actor is not None:
            try:
                self._ray.kill(actor, no_restart=True)
            except Exception as error:
                _log.debug("%s: %s", self._resource, error)  # the actor had stopped already

    def fault(self, kind: type[DeviceError], operation: str, message: str) -> DeviceError:
        """Make an error that names the device."""
        return kind(message, device=self._device, operation=operation)

    def _await(self, resource: str, was_there: bool) -> None:
        until = time.monotonic() + self.patience
        while True:
            offered = self._ray.cluster_resources().get(resource, 0.0) >= 1
            if offered and self._ray.available_resources().get(resource, 0.0) >= 1:
                return
            if (not offered and not was_there) or time.monotonic() > until:
                break
            time.sleep(_POLL_SECONDS)
        if offered:
            reason = f"{resource!r} is in use by another process; close it there"
        else:
            reason = (
                f"no host of the cluster offers {resource!r}; run ray start --resources='{{\"{resource}\": 1}}' there"
            )
        raise self.fault(NotConnected, "open", reason)


class _RemoteChip:
    """Send operations to the actor, with the capabilities of the device on the host.

    Args:
        link: link to the actor.
        spec: spec of the device.
        capabilities: capabilities of the device.
        timeout: longest duration of one operation in seconds; the times of the spec are added.
    """

    def __init__(self, link: _Link, spec: DeviceSpec, capabilities: tuple[type, ...], timeout: float) -> None:
        self.spec = spec
        self.capabilities = capabilities
        self._link, self._timeout = link, timeout

    def open(self) -> None:
        self._call("open", lambda actor: actor.open.remote(), patience=self._link.patience - self._timeout)

    def close(self) -> None:
        self._call("close", lambda actor: actor.close.remote())

    def program(self, controls: Tensor) -> None:
        sent = _array(controls)
        self._call("program", lambda actor: actor.program.remote(sent), patience=self.spec.program_seconds)

    def query(self, inputs: Tensor) -> Tensor:
        sent, patience = _array(inputs), len(inputs) * self.spec.vector_seconds
        return _tensor(self._call("query", lambda actor: actor.query.remote(sent), patience=patience)).to(inputs)

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        sent = _array(controls), _array(inputs)
        patience = len(controls) * (self.spec.program_seconds + len(inputs) * self.spec.vector_seconds)
        answer = self._call("query_each", lambda actor: actor.query_each.remote(*sent), patience=patience)
        return _tensor(answer).to(inputs)

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        sent, patience = _array(outputs), len(outputs) * self.spec.vector_seconds
        answer = self._call("query_adjoint", lambda actor: actor.query_adjoint.remote(sent), patience=patience)
        return _tensor(answer).to(outputs)

    def flush(self) -> None:
        self._call("flush", lambda actor: actor.flush.remote())

    @property
    def clock_seconds(self) -> float:
        return float(self._call("clock", lambda actor: actor.clock_seconds.remote()))

    def wait(self, seconds: float) -> None:
        self._call("wait", lambda actor: actor.wait.remote(seconds), patience=seconds)

    @property
    def temperature_celsius(self) -> float:
        return float(self._call("temperature", lambda actor: actor.temperature_celsius.remote()))

    def _call(self, operation: str, send: Callable[[Any], Any], *, patience: float = 0.0) -> Any:
        return self._link.call(operation, send, timeout=self._timeout + patience)[0]


class RemoteDevice(DeviceWrapper, StaysInProcess):
    """Drive a device through a Ray actor on the host of the chip; made by `open_remote`.

    The host of the chip offers one unit of a custom resource, and the actor uses this unit. So the actor runs on this
    host, and no other process can use the chip at the same time. When the actor or its node is lost, operations raise
    `astralora.devices.NotConnected`. `open` then waits until the resource is available again, so that a `Session`
    recovers from the loss if the device declares ``idempotent_program``. The remote device has only those capabilities
    of the device that transfer vectors or small numbers. It belongs to the process that made it; in a child process,
    all operations raise `DeviceError`, and `close` does nothing.

    Args:
        link: link to the actor, which was started.
        spec: spec of the device on the host.
        capabilities: capabilities of the device on the host.
        timeout: longest duration of one operation, in seconds; the times of the spec are added.
    """

    adapts = (ProgramsMany, Reciprocal)
    forwards = (Clock, Flushes, Thermometer)

    def __init__(self, link: _Link, spec: DeviceSpec, capabilities: tuple[type, ...], timeout: float) -> None:
        super().__init__(_RemoteChip(link, spec, capabilities, timeout))
        self._link = link
        self._has_actor, self._is_open, self._must_close = True, False, False

    @property
    def _lock(self) -> Lock:
        """Return the lock of the device; entering it in a process that did not open the device raises an error."""
        return self._link.ownership.lock

    def open(self) -> None:
        """Connect, with a new actor if the last one was lost; do nothing when connected already."""
        try:
            with self._lock:
                if not self._is_open:
                    self._open()
        except BaseException:
            # The lock is free here, because the device is closed in another thread.
            if not self._is_open:
                undo_open(self)
            raise

    def _open(self) -> None:
        if not self._has_actor:
            spec, _ = self._link.start(was_there=True)
            self._has_actor = True
            if spec != self.spec:
                raise self._link.fault(
                    DeviceError, "open", "the device on the host is not the same as before; make a new remote device"
                )
        self._must_close = True
        self.device.open()
        self._is_open = True

    def close(self) -> None:
        """Leave the hardware in its safe state and release the chip; do nothing when closed already."""
        if self._link.ownership.is_foreign:
            return
        with self._lock:
            self._is_open = False
            try:
                if self._must_close:
                    self.device.close()
            except Exception:
                self._end()
                raise
            self._end()

    def _end(self) -> None:
        """Release the chip, because it is closed or does not answer; after an interruption, it is closed later."""
        self._must_close = self._has_actor = False
        self._link.stop()
        self._link.ownership.release()

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        with self._lock:
            self._require_open("program")
            self.device.program(controls)

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through the device: (batch, in_features) -> (batch, out_features)."""
        with self._lock:
            self._require_open("query")
            return self.device.query(inputs)

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program one setting after the other, and pass the same vectors at each: (settings, batch, out_features)."""
        with self._lock:
            self._require_open("query_each")
            return self.behind(ProgramsMany).query_each(controls, inputs)

    def query_adjoint(self, outputs: Tensor) -> Tensor:
        """Pass vectors backwards through the device: (batch, out_features) -> (batch, in_features)."""
        with self._lock:
            self._require_open("query_adjoint")
            return self.behind(Reciprocal).query_adjoint(outputs)

    def _require_open(self, operation: str) -> None:
        if not self._is_open:
            raise self._link.fault(NotConnected, operation, "is closed; call open first")


def open_remote(
    device: str,
    *,
    resource: str | None = None,
    address: str = "auto",
    timeout: float = 30.0,
    patience: float = 30.0,
    **options: Any,
) -> RemoteDevice:
    """Drive a registered device on another machine of a Ray cluster; a custom resource selects the machine.

    Args:
        device: registered name or bench file on that machine.
        resource: custom resource of the chip; its machine must offer one unit of it. None for any machine.
        address: address of the cluster, used if this process is not connected to a cluster; by default the local one.
        timeout: longest duration of one operation, in seconds.
        patience: longest time to wait until the chip is available, in seconds.
        **options: options of the device; sizes, impairments and seed are left out if it does not take them.

    Raises:
        NotConnected: there is no cluster, no host offers the resource, or the chip is in use.
        DeviceError: the device cannot be made on that machine.
    """
    ray = require("ray", "remote devices need", "ray")
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise NotConnected(
                f"there is no Ray cluster at {address!r} ({first}); start one by ray start --head", device=device
            ) from None
    link = _Link(device, options, resource, patience)
    spec, capabilities = link.start(was_there=False)
    return RemoteDevice(link, spec, capabilities, timeout)


def _tensor(array: _Array) -> Tensor:
    # Copied, because Ray's arrays are read-only views of its store, at addresses that may not be aligned.
    return aligned(torch.from_numpy(np.array(array)))


def _array(tensor: Tensor) -> _Array:
    array: _Array = tensor.detach().cpu().contiguous().numpy()
    return array


def _required(device: Device, protocol: type[_Capability]) -> _Capability:
    found = capability_of(device, protocol)
    if found is None:
        raise DeviceError(f"does not have the capability {protocol.__name__}", device=device.spec.name)
    return found


def _error_report(error: BaseException) -> tuple[str, ...]:
    if isinstance(error, DeviceError):
        return _ERROR, type(error).__name__, error.message, error.device or "", error.operation or ""
    return _ERROR, "DeviceError", f"{type(error).__name__}: {error}", "", ""
