"""Finding devices by name: installed ones by entry point, a notebook's own by one call."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import ValidationError

from .bench import Bench
from .device import Device
from .errors import DeviceError

__all__ = [
    "DeviceEntry",
    "find_device",
    "list_devices",
    "make_device",
    "make_inner",
    "offer_device",
    "register_device",
]

ENTRY_POINT_GROUP = "astralora.devices"

# Options that astralora's own commands offer to any device.
_OFFERED = frozenset({"in_features", "out_features", "impairments", "seed"})

DeviceFactory = Callable[..., Device]
"""Makes a closed device from keyword options."""

_registered: dict[str, DeviceFactory] = {}


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """One registered device.

    Attributes:
        name: what `open_device` calls it.
        source: who registered it: a distribution, or ``"this process"``.
        factory: makes the device; None where it cannot be loaded.
        problem: why it cannot be loaded, in one sentence.
    """

    name: str
    source: str
    factory: DeviceFactory | None
    problem: str | None = None

    @property
    def summary(self) -> str:
        """First line of what the factory says of itself."""
        doc = inspect.getdoc(self.factory) if self.factory else None
        return doc.splitlines()[0].rstrip(".") if doc else ""

    def accepts(self, option: str) -> bool:
        """Whether the factory takes a keyword of this name, as far as it tells."""
        parameters = _parameters(self.factory) if self.factory else {}
        return parameters is not None and (
            option in parameters or any(item.kind is item.VAR_KEYWORD for item in parameters.values())
        )


def register_device(name: str, factory: DeviceFactory, *, replace: bool = False) -> None:
    """Make a device known by name in this process.

    A package registers its devices for everyone with an entry point in the group ``astralora.devices``.

    Args:
        name: what `open_device` will call it.
        factory: called with the options given to `open_device`, returns a `Device`. astralora's own trainer
            offers ``in_features``, ``out_features``, ``impairments`` and ``seed``, and passes those
            that the factory accepts.
        replace: allow taking over a name that is in use.

    Raises:
        ValueError: the name is taken.
    """
    if not replace and name in _known():
        raise ValueError(f"a device named {name!r} exists already; pass replace=True to take it over")
    _registered[name] = factory


def list_devices() -> list[DeviceEntry]:
    """Every registered device by name, also those that cannot be loaded, with the reason."""
    return [_entry(name, point) for name, point in sorted(_known().items())]


def find_device(name: str) -> DeviceEntry:
    """The registered device of this name, or the one that a `astralora.devices.Bench` file tells of.

    Args:
        name: a registered name, or a path that ends in ``.toml``.

    Raises:
        DeviceError: there is none, with the nearest names; or it cannot be loaded, with the reason.
    """
    if name.endswith(".toml"):
        bench = Bench.load(name)
        entry = find_device(bench.device)
        assert entry.factory is not None
        factory = partial(entry.factory, **bench.options)
        factory.__doc__ = entry.factory.__doc__
        return DeviceEntry(name, f"{bench.device} of {entry.source}", factory)
    known = _known()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else f"known are {', '.join(sorted(known)) or 'none'}"
        )
        raise DeviceError(f"there is no device named {name!r}; {hint}")
    entry = _entry(name, known[name])
    if entry.factory is None:
        raise DeviceError(f"cannot be loaded from {entry.source}: {entry.problem}", device=name, operation="open")
    return entry


def make_device(name: str, **options: Any) -> Device:
    """Make the device of this name, without connecting to it.

    Args:
        name: a registered name, or a bench file; see `find_device`.
        **options: for the device's factory, such as ``in_features``.

    Raises:
        DeviceError: unknown name, or options that the factory refuses.
    """
    factory = find_device(name).factory
    assert factory is not None
    parameters = _parameters(factory)

    def refused(reason: str) -> DeviceError:
        return DeviceError(reason, device=name, operation="open")

    if parameters is not None:
        try:
            inspect.Signature(list(parameters.values())).bind(**options)
        except TypeError as error:
            known = [key for key, item in parameters.items() if item.kind is not item.VAR_KEYWORD]
            raise refused(f"{error}; its options are {', '.join(known) or 'none'}") from None
    try:
        device = factory(**options)
    except DeviceError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        unknown = first["type"] == "extra_forbidden"
        raise refused(f"option {place}: {'there is no such option' if unknown else first['msg']}") from None
    except ValueError as error:
        raise refused(str(error)) from error
    except Exception as error:
        # Somebody else's code, which may fail in any way at all.
        raise refused(f"its factory failed with {_one_line(error)}") from error
    if not isinstance(device, Device):
        raise refused(
            f"its factory made a {type(device).__name__}, which is no Device: "
            f"it needs spec, open, close, program and query"
        )
    return device


def offer_device(name: str, offered: Mapping[str, Any], **options: Any) -> Device:
    """Make a device with options of its own, and those of a common offer that it takes.

    Args:
        name: a registered name, or a bench file.
        offered: options that devices may or may not take, such as ``impairments``.
        **options: that it has to take.

    Raises:
        DeviceError: as `make_device`, or an option is both offered and given.
    """
    entry = find_device(name)
    for option in offered.keys() & options.keys():
        raise DeviceError(f"the option {option!r} is given twice", device=name, operation="open")
    return make_device(name, **{key: value for key, value in offered.items() if entry.accepts(key)}, **options)


def make_inner(name: str, options: Mapping[str, Any]) -> Device:
    """Make the device that another one's options name.

    What is offered to every device (sizes, impairments, seed) has been offered to the outer one, which takes
    anything on behalf of the inner one: it is passed on to those that know it. All else has to be taken.

    Args:
        name: a registered name, or a bench file.
        options: as they came to the outer device.

    Raises:
        DeviceError: as `make_device`.
    """
    offered = {key: value for key, value in options.items() if key in _OFFERED}
    return offer_device(name, offered, **{key: value for key, value in options.items() if key not in _OFFERED})


def _known() -> dict[str, DeviceFactory | EntryPoint]:
    installed = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**installed, **_registered}


def _entry(name: str, point: DeviceFactory | EntryPoint) -> DeviceEntry:
    if not isinstance(point, EntryPoint):
        return DeviceEntry(name, "this process", point)
    source = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    try:
        factory = point.load()
    except (Exception, SystemExit) as error:
        # A plugin may fail in any way at all, and must not take the others with it.
        return DeviceEntry(name, source, None, _one_line(error))
    if not callable(factory):
        problem = f"{point.value} is a {type(factory).__name__}, not something that makes a device"
        return DeviceEntry(name, source, None, problem)
    return DeviceEntry(name, source, factory)


def _parameters(factory: DeviceFactory) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return None  # compiled code need not tell


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0]
