"""Format numbers for readers."""

from __future__ import annotations

__all__ = ["duration", "percent"]


def duration(seconds: float) -> str:
    """Format a time span in a suitable unit, such as ``"3.1 s"`` or ``"2.4 h"``."""
    if seconds == 0:
        return "0 s"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        # Two minutes read better as minutes, one and a half as seconds.
        if seconds >= (2 * size if size > 1 else size):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def percent(share: float | None) -> str:
    """Format a share as a percentage with one decimal; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"
