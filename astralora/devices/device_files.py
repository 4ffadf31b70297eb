"""Load a device factory from a Python file, named as ``path/to/mychip.py:make_chip``."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import DeviceError
from .files import read_bytes
from .validation import printable

__all__ = ["absolute_name", "load_factory", "split_name"]

# The module of each file that was imported, with the file's modification time at that moment.
_imported: dict[Path, tuple[int, ModuleType]] = {}


def split_name(name: str) -> tuple[Path, str] | None:
    r"""Split a device name into a Python file and the name of a factory in it.

    The last colon separates the two, because a path may contain colons: ``C:\lab\mychip.py:make_chip``.

    Returns:
        Path as given, and name of the factory (empty if it is missing); None if the name is not that of a Python file.
    """
    path, _, factory = name.rpartition(":")
    if path.endswith(".py"):
        return Path(path).expanduser(), factory
    return (Path(name).expanduser(), "") if name.endswith(".py") else None


def absolute_name(name: str, folder: str | Path = ".") -> str:
    """Make the path in a device name absolute; return every other name unchanged.

    Args:
        name: any device name.
        folder: folder that a relative path starts from.
    """
    parts = split_name(name)
    if parts is None:
        return name
    path, factory = parts
    return f"{os.path.abspath(folder / path)}:{factory}"


def load_factory(name: str) -> Callable[..., Any]:
    """Import a Python file and return the factory in it.

    The file is the user's own code and runs without restrictions, like any script. Its folder is appended to
    ``sys.path``, so that it can import other files in this folder. A process imports a file once, and imports it again
    only after the file has changed.

    Args:
        name: path and factory, such as ``path/to/mychip.py:make_chip``; a relative path starts from the current folder.
            The factory is a function or a class.

    Raises:
        DeviceError: the file does not exist, its import fails, or it does not define the factory.
    """
    parts = split_name(name)
    assert parts is not None
    path, attribute = Path(os.path.abspath(parts[0])), parts[1]
    shown = printable(path.name)

    def refused(message: str) -> DeviceError:
        return DeviceError(message, device=printable(name), operation="open")

    if not os.path.exists(path):
        raise refused(f"there is no file {printable(str(path))}")
    source = read_bytes(path, "the Python file", error=refused)
    try:
        module = _import(path, source)
    except (Exception, SystemExit) as error:
        # The user's code may raise any error.
        reason = printable(f"{type(error).__name__}: {error}".split("\n")[0])
        raise refused(f"{shown} cannot be imported: {reason}") from error
    if not attribute or not hasattr(module, attribute):
        present = ", ".join(_factories(module)) or "none"
        complaint = f"{shown} has no {printable(attribute)!r}" if attribute else "the name of the factory is missing"
        raise refused(f"{complaint}; write FILE.py:FACTORY, where the functions and classes in this file are {present}")
    factory = getattr(module, attribute)
    if not callable(factory):
        kind = type(factory).__name__
        raise refused(f"{attribute} in {shown} is of type {kind}; it must be a function or a class that makes a device")
    return factory  # type: ignore[no-any-return]


def _import(path: Path, source: bytes) -> ModuleType:
    """Import a file with this content under a unique module name, unless it was imported before and has not changed."""
    changed = path.stat().st_mtime_ns
    earlier = _imported.get(path)
    if earlier is not None and earlier[0] == changed:
        return earlier[1]
    module = ModuleType(f"astralora_device_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}")
    module.__file__ = str(path)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # Dataclasses and pickle look classes up by the name of their module.
    sys.modules[module.__name__] = module
    try:
        # Compiled here, because Python's cache of compiled files misses a second change within one second.
        exec(compile(source, path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    _imported[path] = (changed, module)
    return module


def _factories(module: ModuleType) -> list[str]:
    """List the functions and classes that the module defines itself, without imported ones."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
