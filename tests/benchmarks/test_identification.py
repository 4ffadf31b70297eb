from typing import Any

import pytest

import astralora as al
from astralora.benchmarks import identification


def test_a_calibration_is_compared_with_the_truth() -> None:
    told: list[dict[str, Any]] = []
    records = identification(["mrr"], [4], [0], programs=48, vectors=400, settings=2, listener=told.append)
    assert records == told
    (record,) = records
    assert record["fits"]
    assert record["programs"] == 48
    assert record["vectors"] <= 400
    # 47 settings see each of 16 entries through 4 orthogonal vectors: noise of 2 % becomes one of 0.3 %.
    assert record["before_least"] < record["after_least"] <= 1
    assert record["after_least"] > 0.99
    assert record["beyond"] is not None


def test_a_chip_whose_constants_nobody_knows_is_refused() -> None:
    with pytest.raises(al.ConfigurationError, match="is no simulated kind: nobody knows what it was made with"):
        identification(["tiled"], [4], [0])
