"""What records of the benchmark of adapters say: means, standard errors, and who is better than uniform LoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import Any

__all__ = ["summarize", "verdict"]

Record = Mapping[str, Any]

_ERRORS = 2
"""Standard errors from which on a difference counts."""


def summarize(records: Sequence[Record], reference: str = "uniform") -> list[dict[str, Any]]:
    """Mean test losses with their standard errors, and paired differences to a reference on the same seeds.

    A standard error is the sample standard deviation over the root of the number of seeds.

    Args:
        records: of `astralora.benchmarks.adapters`; those of tuning are left out.
        reference: name of a method.

    Returns:
        A row for each method: method, rate, seeds (how many), trained_parameters, adapters_on, adapters_used (mean),
        test_loss, standard_error, difference and difference_error; None for what is not known, as errors of one seed
        and differences to what was not run are.
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
    """Whether a method beats uniform LoRA, in one sentence; None where it was not compared with it.

    A difference counts where it is more than two of its standard errors.

    Args:
        rows: of `summarize`.
        method: name of a method.
    """
    row = next((row for row in rows if row["method"] == method), None)
    if row is None or row["difference"] is None:
        return None
    name = "dynamic HeteroLoRA" if method == "dynamic" else repr(method)
    gap, error = row["difference"], row["difference_error"]
    if error is None:
        return f"One seed does not tell whether {name} beats uniform LoRA of the same budget ({gap:+.3f} nats a byte)."
    found = f"{gap:+.3f} ± {error:.3f} nats a byte, {row['seeds']} seeds"
    if gap < -_ERRORS * error:
        return f"{_begun(name)} beats uniform LoRA of the same budget ({found})."
    if gap > _ERRORS * error:
        return f"{_begun(name)} loses to uniform LoRA of the same budget ({found})."
    return f"These seeds do not tell whether {name} beats uniform LoRA of the same budget ({found})."


def _begun(name: str) -> str:
    return name[0].upper() + name[1:]


def _standard_error(values: Sequence[float]) -> float | None:
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else None
