import io
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from astralora.reports import RunData, duration, percent, run_report, verdicts
from astralora.reports.plots import PLOTS
from astralora.training import RunConfig, RunFolder, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunData:
    config = RunConfig.load(None, {"epochs": 2, "batch_size": 400, "in_features": 16, "out_features": 8})
    return train(RunFolder(tmp_path_factory.mktemp("run") / "r", config))


def test_every_picture_is_one(run: RunData) -> None:
    files = run_report(run, "epochs = 2")
    assert {f"{name}.png" for name in PLOTS} | {"report.html", "overview.png"} == files.keys()
    for name, content in files.items():
        if name.endswith(".png"):
            picture = matplotlib.image.imread(io.BytesIO(content))
            assert picture.shape[0] > 300, name
            assert picture[..., :3].std() > 0.01, f"{name} is blank"


def test_the_page_needs_no_network_and_names_the_result_first(run: RunData) -> None:
    page = run_report(run, "note = '<script>'")["report.html"].decode()
    assert "http" not in page.replace("http-equiv", "")
    assert page.index("Test accuracy") < page.index("<img")
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_advice_is_given_where_it_is_due(run: RunData) -> None:
    assert len(verdicts(run)) == 1
    troubled: dict[str, Any] = {**run.summary, "stopped_early": "budget", "device_state": "reopened"}
    troubled["surrogate_health"] = 0.3
    last = {"event": "epoch", "saturation": 0.4}
    found = " ".join(verdicts(RunData(troubled, [last], [], [], "rad")))
    for word in ("Stopped early: budget", "could not be restored", "40.0 % of the device's outputs", "only 30.0 %"):
        assert word in found


def test_a_run_without_an_epoch_still_has_a_report(run: RunData) -> None:
    empty = {**run.summary, "test_accuracy": None, "best_test_accuracy": None, "stopped_early": "budget"}
    assert run_report(RunData(empty, [], run.controls_before, run.controls_after, "rad"), "")["report.html"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (2e-6, "2 us"), (0.0213, "21.3 ms"), (5.98, "5.98 s"), (118, "118 s"), (300, "5 min"),
     (7200, "2 h"), (86400 * 3, "3 d")],
)  # fmt: skip
def test_times_are_told_in_the_unit_that_suits(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_shares_are_told_as_percentages() -> None:
    assert (percent(0.98765), percent(None)) == ("98.8 %", "-")


def test_the_report_template_is_where_it_is_looked_for() -> None:
    import astralora.reports

    assert (Path(astralora.reports.__file__).parent / "run.html.j2").is_file()
