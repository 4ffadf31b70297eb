"""Summarise the benchmark of adapters: means, standard errors, and a verdict on uniform LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

__all__ = ["summarize", "verdict"]

Record = Mapping[str, Any]

# A difference counts if it exceeds this many standard errors.
_ERRORS = 2


def summarize(records: Sequence[Record], reference: str = "uniform") -> list[dict[str, Any]]:
    """Return mean test losses with standard errors, and paired differences to a reference on the same seeds.

    A standard error is the sample standard deviation over the root of the number of seeds.

    Args:
        records: records of `astralora.benchmarks.adapters`; tuning runs are ignored.
        reference: name of the reference method.

    Returns:
        A row for each method: method, rate, seeds (their number), trained_parameters, adapters_on, adapters_used
        (mean), test_loss, standard_error, difference and difference_error. A value is None where it is not defined,
        such as the error of one seed.
    """
    runs: dict[str, dict[int, Record]] = {}
    for record in records:
        if record["part"] == "run":
            runs.setdefault(record["method"], {})[record["seed"]] = record
    theirs = runs.get(reference, {})
    rows = []
    for method, mine in runs.items():
        shared = [] if method == reference else [seed for seed in mine if seed in theirs]
        gaps = [mine[seed]["test_loss"] - theirs[seed]["test_loss"] for seed in shared]
        losses = [record["test_loss"] for record in mine.values()]
        rows.append(
            {
                "method": method,
                "rate": next(iter(mine.values()))["rate"],
                "seeds": len(mine),
                "trained_parameters": max(record["trained_parameters"] for record in mine.values()),
                "adapters_on": max(record["adapters_on"] for record in mine.values()),
                "adapters_used": fmean(record["adapters_used"] for record in mine.values()),
                "test_loss": fmean(losses),
                "standard_error": _standard_error(losses),
                "difference": fmean(gaps) if gaps else None,
                "difference_error": _standard_error(gaps),
            }
        )
    return rows


def verdict(rows: Sequence[Record], method: str = "dynamic") -> str | None:
    """Return a sentence on whether a method beats uniform LoRA; None if the records do not compare them.

    A difference counts where it exceeds two of its standard errors.

    Args:
        rows: rows of `summarize`.
        method: name of a method.
    """
    row = next((row for row in rows if row["method"] == method), None)
    if row is None or row["difference"] is None:
        return None
    name = "dynamic HeteroLoRA" if method == "dynamic" else repr(method)
    gap, error = row["difference"], row["difference_error"]
    if error is None:
        return f"One seed cannot show whether {name} beats uniform LoRA of the same budget ({gap:+.3f} nats a byte)."
    found = f"{gap:+.3f} ± {error:.3f} nats a byte, {row['seeds']} seeds"
    if gap < -_ERRORS * error:
        return f"{_capitalised(name)} beats uniform LoRA of the same budget ({found})."
    if gap > _ERRORS * error:
        return f"{_capitalised(name)} loses to uniform LoRA of the same budget ({found})."
    return f"These seeds do not show whether {name} beats uniform LoRA of the same budget ({found})."


def _capitalised(name: str) -> str:
    """Capitalise the first letter."""
    return name[0].upper() + name[1:]


def _standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean; None for one value."""
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None
