"""Test the benchmark of calibrations."""

from typing import Any

import pytest

import astralora as al
from astralora.benchmarks import identification


def test_a_calibration_is_compared_with_the_truth() -> None:
    reported: list[dict[str, Any]] = []
    records = identification(["mrr"], [4], [0], programs=48, vectors=400, settings=2, listener=reported.append)
    assert records == reported
    (record,) = records
    assert record["fits"]
    assert record["programs"] == 48
    assert record["vectors"] <= 400
    # 47 settings measure each of 16 entries with 4 orthogonal vectors, which reduces the noise of 2 % to 0.3 %.
    assert record["before_least"] < record["after_least"] <= 1
    assert record["after_least"] > 0.99
    assert record["beyond"] is not None


def test_a_chip_of_unknown_constants_is_refused() -> None:
    with pytest.raises(al.ConfigurationError, match="is no simulated kind, so its true constants are unknown"):
        identification(["tiled"], [4], [0])
