"""A device on another machine, as a Ray actor on the host that has the chip."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..devices import (
    Device,
    DeviceError,
    DeviceSpec,
    DeviceTimeout,
    NotConnected,
    ProgramsMany,
    errors,
)
from ..devices.extras import require
from ..devices.registry import make_inner

__all__ = ["RemoteDevice", "RemoteManyDevice", "open_remote"]

_log = logging.getLogger(__name__)

# How often the cluster is asked whether a chip has come back, in seconds.
_TICK: Final = 0.2
# What an answer begins with.
_OK: Final = "ok"
_ERROR: Final = "error"

_Array = NDArray[Any]


class _Host:
    """Runs on the host that has the chip; one call at a time, as Ray's actors do.

    Errors are told rather than raised: they have to arrive as they were, whatever the version at the other end.
    """

    def __init__(self, device: str, options: dict[str, Any]) -> None:
        self._device: Device | None = None
        self._problem: tuple[str, ...] | None = None
        try:
            self._device = make_inner(device, options)
        except Exception as error:
            self._problem = _told(error)

    def describe(self) -> tuple[Any, ...]:
        """The spec as JSON, and which operations there are beyond the least."""
        if self._device is None:
            return self._problem or ()
        more = ["query_each"] if isinstance(self._device, ProgramsMany) else []
        return _OK, self._device.spec.model_dump_json(), more

    def call(self, operation: str, *arrays: _Array) -> tuple[Any, ...]:
        """One operation of the device, on arrays and with an array for an answer."""
        # Ray's arrays are read-only views of its store.
        tensors = [torch.from_numpy(np.array(array)) for array in arrays]
        try:
            answer = getattr(self._device, operation)(*tensors)
        except Exception as error:
            return _told(error)
        return _OK, None if answer is None else answer.detach().cpu().numpy()


class _Link:
    """The actor, for as long as there is one, and what is said to it.

    Args:
        device: registered name or bench file, as the actor's host knows it.
        options: for the device's factory.
        resource: the chip's custom resource; None for any host.
        patience: longest time to wait for the chip to be free, or back, in seconds.
    """

    def __init__(self, device: str, options: dict[str, Any], resource: str | None, patience: float) -> None:
        self._ray = require("ray", "remote devices need", "ray")
        self._made_of = device, options
        self._resource = resource
        self.patience = patience
        self._actor: Any = None

    def start(self, *, was_there: bool) -> tuple[DeviceSpec, list[str]]:
        """Put an actor on the host of the chip, once the chip is there and free; what it makes there is told.

        Args:
            was_there: wait for the chip's host to come back; else, one that is not there is told at once.
        """
        if self._resource is not None:
            self._await(self._resource, was_there)
        wanted = {} if self._resource is None else {self._resource: 1.0}
        host = self._ray.remote(_Host).options(num_cpus=0, resources=wanted, max_restarts=0, max_task_retries=0)
        self._actor = host.remote(*self._made_of)
        try:
            text, more = self.ask("describe", timeout=self.patience)
        except BaseException:
            self.stop()
            raise
        return DeviceSpec.model_validate_json(text), more

    def ask(self, method: str, *arguments: Any, timeout: float) -> tuple[Any, ...]:
        """Call the actor, and raise here what went wrong there."""
        ray, operation = self._ray, str(arguments[0]) if arguments else "open"
        if self._actor is None:
            raise self.fault(NotConnected, operation, "the actor is lost; open the device again")
        try:
            kind, *rest = ray.get(getattr(self._actor, method).remote(*arguments), timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            raise self.fault(DeviceTimeout, operation, f"did not answer within {timeout:g} s") from None
        except ray.exceptions.RayError as error:
            # What is left of it is of no use any more.
            self.stop()
            first = (str(error).splitlines() or [""])[0]
            raise self.fault(NotConnected, operation, f"the actor is lost ({first}); open the device again") from error
        if kind == _ERROR:
            name, message, device, where = rest
            error_type = getattr(errors, name) if name in errors.__all__ else DeviceError
            raise error_type(message, device=device or self._made_of[0], operation=where or operation)
        return tuple(rest)

    def stop(self) -> None:
        """Let the chip's host have its chip back."""
        actor, self._actor = self._actor, None
        if actor is not None:
            try:
                self._ray.kill(actor, no_restart=True)
            except Exception as error:
                _log.debug("%s: %s", self._resource, error)  # it was gone already

    def fault(self, kind: type[DeviceError], operation: str, message: str) -> DeviceError:
        """An error that names the device."""
        return kind(message, device=self._made_of[0], operation=operation)

    def _await(self, resource: str, was_there: bool) -> None:
        until = time.monotonic() + self.patience
        while True:
            offered = self._ray.cluster_resources().get(resource, 0.0) >= 1
            if offered and self._ray.available_resources().get(resource, 0.0) >= 1:
                return
            if (not offered and not was_there) or time.monotonic() > until:
                break
            time.sleep(_TICK)
        if offered:
            reason = f"{resource!r} is in use by somebody else; close it there"
        else:
            reason = f"no host of the cluster offers {resource!r}; ray start --resources='{{\"{resource}\": 1}}' does"
        raise self.fault(NotConnected, "open", reason)


class RemoteDevice:
    """A device that a Ray actor drives on the host that has it; made by `open_remote`.

    The actor is pinned by a custom resource, of which the chip's host offers 1: nobody else gets the chip while it is
    held. When the actor or its node is lost, operations raise `astralora.devices.NotConnected`; `open` then waits for the
    resource to come back, so that a `astralora.devices.Session` gets over the loss where the device declares
    ``idempotent_program``.

    Args:
        link: to the actor.
        spec: as the device at the other end promises.
        timeout: longest time that one operation may take, in seconds; times that the spec tells of come on top.
    """

    def __init__(self, link: _Link, spec: DeviceSpec, timeout: float) -> None:
        self.spec = spec
        self._link, self._timeout = link, timeout
        self._lock = threading.RLock()
        self._has_actor, self._is_open = True, False

    def open(self) -> None:
        """Connect, with a new actor where the last one was lost; does nothing when connected already."""
        with self._lock:
            if self._is_open:
                return
            if not self._has_actor:
                spec, _ = self._link.start(was_there=True)
                if spec != self.spec:
                    self._link.stop()
                    raise self._link.fault(DeviceError, "open", "another device answers than before; make it anew")
                self._has_actor = True
            self._call("open", timeout=self._link.patience)
            self._is_open = True

    def close(self) -> None:
        """Leave the hardware in its safe state and let others have it; does nothing when closed already."""
        with self._lock:
            was_open, self._is_open = self._is_open, False
            try:
                if was_open:
                    self._call("close", timeout=self._timeout)
            finally:
                self._has_actor = False
                self._link.stop()

    def program(self, controls: Tensor) -> None:
        """Set all controls: shape (num_controls,), in control units."""
        self._operate("program", controls, seconds=self.spec.program_seconds)

    def query(self, inputs: Tensor) -> Tensor:
        """Pass vectors through: (batch, in_features) -> (batch, out_features)."""
        answer = self._operate("query", inputs, seconds=len(inputs) * self.spec.vector_seconds)
        return torch.from_numpy(np.array(answer)).to(inputs)

    def _operate(self, operation: str, *tensors: Tensor, seconds: float) -> Any:
        with self._lock:
            if not self._is_open:
                raise self._link.fault(NotConnected, operation, "is closed; call open first")
            arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in tensors]
            return self._call(operation, *arrays, timeout=self._timeout + seconds)

    def _call(self, operation: str, *arrays: _Array, timeout: float) -> Any:
        return self._link.ask("call", operation, *arrays, timeout=timeout)[0]


class RemoteManyDevice(RemoteDevice):
    """One that takes many settings in one call."""

    def query_each(self, controls: Tensor, inputs: Tensor) -> Tensor:
        """Program each setting in turn and pass the same vectors through.

        Args:
            controls: (settings, num_controls).
            inputs: (batch, in_features).

        Returns:
            (settings, batch, out_features).
        """
        seconds = len(controls) * (self.spec.program_seconds + len(inputs) * self.spec.vector_seconds)
        answer = self._operate("query_each", controls, inputs, seconds=seconds)
        return torch.from_numpy(np.array(answer)).to(inputs)


def open_remote(
    device: str,
    *,
    resource: str | None = None,
    address: str = "auto",
    timeout: float = 30.0,
    patience: float = 30.0,
    **options: Any,
) -> RemoteDevice:
    """Another registered device on another machine of a Ray cluster, pinned to its host by a custom resource.

    Args:
        device: registered name or bench file, as that host knows it.
        resource: the chip's custom resource, of which its host offers 1; None for any host.
        address: of the cluster, where this process is not connected to one; by default the one that runs here.
        timeout: longest time that one operation may take, in seconds.
        patience: longest time to wait for the chip to be free, or back, in seconds.
        **options: for that device; sizes, impairments and seed only if it takes them.

    Raises:
        NotConnected: there is no cluster, no host offers the resource, or the chip is in use.
        DeviceError: the device cannot be made there.
    """
    ray = require("ray", "remote devices need", "ray")
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            first = (str(error).splitlines() or [""])[0]
            raise NotConnected(
                f"there is no Ray cluster at {address!r} ({first}); ray start --head starts one", device=device
            ) from None
    link = _Link(device, options, resource, patience)
    spec, more = link.start(was_there=False)
    return (RemoteManyDevice if "query_each" in more else RemoteDevice)(link, spec, timeout)


def _told(error: BaseException) -> tuple[str, ...]:
    if isinstance(error, DeviceError):
        return _ERROR, type(error).__name__, error.message, error.device or "", error.operation or ""
    return _ERROR, "DeviceError", f"{type(error).__name__}: {error}", "", ""
