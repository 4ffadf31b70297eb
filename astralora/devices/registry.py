"""Find devices by name: from entry points, from registration in this process, or from the path of a file."""

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
from .device_files import load_factory, split_name
from .errors import DeviceError
from .validation import check_options, first_problem

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

# Options that the trainer and the commands offer to every device.
_OFFERED_TO_ALL = frozenset({"in_features", "out_features", "impairments", "seed"})

DeviceFactory = Callable[..., Device]
"""Function or class that makes a closed device from keyword options."""

_registered: dict[str, DeviceFactory] = {}


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """Describe where a device comes from and how it is made.

    Attributes:
        name: name for `open_device`.
        source: origin of the factory: a distribution, a Python file, or ``"this process"``.
        factory: function or class that makes the device; None where it cannot be loaded.
        problem: reason why it cannot be loaded, in one sentence.
    """

    name: str
    source: str
    factory: DeviceFactory | None
    problem: str | None = None

    @property
    def summary(self) -> str:
        """Return the first line of the factory's docstring."""
        doc = inspect.getdoc(self.factory) if self.factory else None
        return doc.splitlines()[0].rstrip(".") if doc else ""

    def accepts(self, option: str) -> bool:
        """Return whether the factory takes a keyword of this name, according to its signature."""
        parameters = _parameters(self.factory) if self.factory else {}
        return parameters is not None and (
            option in parameters or any(item.kind is item.VAR_KEYWORD for item in parameters.values())
        )


def register_device(name: str, factory: DeviceFactory, *, replace: bool = False) -> None:
    """Register a device by name in this process.

    A package registers its devices for every process with an entry point in the group ``astralora.devices``.

    A factory may be registered again, for example when a notebook cell runs twice: a factory with the same module and
    the same qualified name replaces the earlier one. Lambdas have no unique name, so a second lambda is refused.

    Args:
        name: name for `open_device`.
        factory: function or class that returns a `Device` for the options given to `open_device`. The trainer offers
            ``in_features``, ``out_features``, ``impairments`` and ``seed``, and passes those that the factory accepts.
        replace: whether to replace any other factory that has this name.

    Raises:
        ValueError: the name belongs to an installed device or to another factory.
    """
    taken = name in _all_factories() and not (name in _registered and _same_factory(_registered[name], factory))
    if taken and not replace:
        raise ValueError(f"a device named {name!r} exists already; pass replace=True to replace it")
    _registered[name] = factory


def list_devices() -> list[DeviceEntry]:
    """Return all registered devices, sorted by name; those that cannot be loaded have the reason in ``problem``."""
    return [_entry(name, factory) for name, factory in sorted(_all_factories().items())]


def find_device(name: str) -> DeviceEntry:
    """Return the entry of the device with this name.

    Args:
        name: a registered name; a `Bench` file, whose path ends in ``.toml``; or a factory in a Python file, such as
            ``path/to/mychip.py:make_chip``. That file is imported, so it must be code that the user trusts. A relative
            path starts from the current folder.

    Raises:
        DeviceError: there is no device of this name (the message lists similar names), or it cannot be loaded (the
            message gives the reason).
    """
    if name.endswith(".toml"):
        bench = Bench.load(name)
        entry = find_device(bench.device)
        assert entry.factory is not None
        factory = partial(entry.factory, **bench.options)
        factory.__doc__ = entry.factory.__doc__
        return DeviceEntry(name, f"{bench.device} of {entry.source}", factory)
    if split_name(name) is not None:
        return DeviceEntry(name, "a Python file", load_factory(name))
    factories = _all_factories()
    if name not in factories:
        near = difflib.get_close_matches(name, factories, n=3, cutoff=0.5)
        hint = (
            f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else f"known are {', '.join(sorted(factories)) or 'none'}"
        )
        raise DeviceError(f"there is no device named {name!r}; {hint}")
    entry = _entry(name, factories[name])
    if entry.factory is None:
        raise DeviceError(f"cannot be loaded from {entry.source}: {entry.problem}", device=name, operation="open")
    return entry


def make_device(name: str, **options: Any) -> Device:
    """Make the device of this name, without connecting to it.

    Args:
        name: a registered name, a bench file or a factory in a Python file; see `find_device`.
        **options: options for the device's factory, such as ``in_features``.

    Raises:
        DeviceError: the name is unknown, or the factory refuses the options.
    """
    factory = find_device(name).factory
    assert factory is not None
    parameters = _parameters(factory)

    def refused(reason: str) -> DeviceError:
        return DeviceError(reason, device=name, operation="open")

    given = factory.keywords if isinstance(factory, partial) else {}
    try:
        check_options({**given, **options})
    except ValueError as error:
        raise refused(str(error)) from None
    if parameters is not None:
        try:
            inspect.Signature(list(parameters.values())).bind(**options)
        except TypeError as error:
            options_taken = [key for key, item in parameters.items() if item.kind is not item.VAR_KEYWORD]
            raise refused(f"{error}; its options are {', '.join(options_taken) or 'none'}") from None
    try:
        device = factory(**options)
    except DeviceError:
        raise
    except ValidationError as error:
        raise refused(f"option {first_problem(error, thing='option')}") from None
    except ValueError as error:
        raise refused(str(error)) from error
    except Exception as error:
        # The factory is the user's code and may raise any error.
        raise refused(f"its factory failed with {_one_line(error)}") from error
    if not isinstance(device, Device):
        raise refused(
            f"its factory made a {type(device).__name__}, which is not a Device: "
            f"it needs spec, open, close, program and query"
        )
    return device


def offer_device(name: str, offered: Mapping[str, Any], **options: Any) -> Device:
    """Make a device with the given options; offered options are passed only if its factory takes them.

    Args:
        name: a registered name, a bench file or a factory in a Python file; see `find_device`.
        offered: options that are left out if the factory does not take them, such as ``impairments``.
        **options: options that the factory must take.

    Raises:
        DeviceError: see `make_device`; or an option is both offered and given.
    """
    entry = find_device(name)
    for option in offered.keys() & options.keys():
        raise DeviceError(f"the option {option!r} is given twice", device=name, operation="open")
    return make_device(name, **{key: value for key, value in offered.items() if entry.accepts(key)}, **options)


def make_inner(name: str, options: Mapping[str, Any]) -> Device:
    """Make the device inside a wrapper from the options of the wrapper.

    The options that every device is offered (sizes, impairments, seed) are passed only if the factory of the inner
    device takes them. All other options are passed in any case, and the factory must take them.

    Args:
        name: a registered name, a bench file or a factory in a Python file; see `find_device`.
        options: options for the inner device that the wrapper received.

    Raises:
        DeviceError: see `make_device`.
    """
    offered = {key: value for key, value in options.items() if key in _OFFERED_TO_ALL}
    return offer_device(name, offered, **{key: value for key, value in options.items() if key not in _OFFERED_TO_ALL})


def _all_factories() -> dict[str, DeviceFactory | EntryPoint]:
    """Return the factories, or entry points of factories, of all installed and registered devices by name."""
    installed = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**installed, **_registered}


def _same_factory(earlier: DeviceFactory, later: DeviceFactory) -> bool:
    """Return whether both are the same factory, or two definitions of one name in one module."""
    if earlier is later:
        return True
    names = [(getattr(item, "__module__", None), getattr(item, "__qualname__", None)) for item in (earlier, later)]
    (_, name), _ = names
    return names[0] == names[1] and name is not None and not name.endswith("<lambda>")


def _entry(name: str, point: DeviceFactory | EntryPoint) -> DeviceEntry:
    """Load the factory of a device, and store the reason if that fails."""
    if not isinstance(point, EntryPoint):
        return DeviceEntry(name, "this process", point)
    source = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    try:
        factory = point.load()
    except (Exception, SystemExit) as error:
        # A plugin may raise any error, and the other devices must stay usable.
        return DeviceEntry(name, source, None, _one_line(error))
    if not callable(factory):
        problem = f"{point.value} is of type {type(factory).__name__}; it must be a function or a class"
        return DeviceEntry(name, source, None, problem)
    return DeviceEntry(name, source, factory)


def _parameters(factory: DeviceFactory) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of a factory, or None if it has no signature."""
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return None  # compiled code may have no signature


def _one_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    return f"{type(error).__name__}: {error}".split("\n")[0]
