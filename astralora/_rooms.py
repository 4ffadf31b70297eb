"""Making sure that the packages with common names are ours."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

__all__ = ["check_rooms"]


def check_rooms() -> None:
    """Refuse to start where another package called devices, simulators or drivers would be imported instead.

    Raises:
        ImportError: names the package that is in the way.
    """
    home = Path(__file__).resolve().parent.parent
    for name in ("devices", "simulators", "drivers"):
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded is not None else find_spec(name)
        found = _place(spec)
        if found != home / name / "__init__.py":
            raise ImportError(
                f"astralora needs its own package {name!r}, but Python finds {found or 'none'} under that name; "
                f"rename that one, or take its folder off the import path"
            )


def _place(spec: ModuleSpec | None) -> Path | None:
    if spec is None:
        return None
    if spec.origin:
        return Path(spec.origin).resolve()
    # A folder without __init__.py.
    return next((Path(place).resolve() for place in spec.submodule_search_locations or []), None)
