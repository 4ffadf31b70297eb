from astralora.benchmarks import drift, drift_png, simulators


def test_every_compensation_is_used_for_as_long() -> None:
    records = drift([0], size=16, epochs=1, times=(1.0, 100.0), columns=2)
    kinds = ["none", "global", "output", "columns"]
    assert [(r["compensation"], r["seconds"]) for r in records] == [(kind, t) for kind in kinds for t in (1.0, 100.0)]
    assert all(0 < record["test_accuracy"] <= 1 for record in records)
    spent = {record["compensation"]: (record["vectors"], record["columns"]) for record in records}
    assert spent["none"] == (0, 0)
    assert spent["columns"][1] == 2
    assert spent["global"] == spent["output"]
    assert drift_png(records)[:4] == b"\x89PNG"


def test_simulators_are_timed_beside_a_digital_layer() -> None:
    (record,) = simulators(["slm"], [8], batch=4, repeats=3)
    assert record["multiple"] > 0
    assert record["multiple_of_256"] > 0
