"""Test the reports of runs."""

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


def test_every_picture_has_content(run: RunData) -> None:
    files = run_report(run, "epochs = 2")
    assert {f"{name}.png" for name in PLOTS} | {"report.html", "overview.png"} == files.keys()
    for name, content in files.items():
        if name.endswith(".png"):
            picture = matplotlib.image.imread(io.BytesIO(content))
            assert picture.shape[0] > 300, name
            assert picture[..., :3].std() > 0.01, f"{name} is blank"


def test_the_page_needs_no_network_and_starts_with_the_result(run: RunData) -> None:
    page = run_report(run, "note = '<script>'")["report.html"].decode()
    assert "http" not in page.replace("http-equiv", "")
    assert page.index("Test accuracy") < page.index("<img")
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_problems_are_reported(run: RunData) -> None:
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
def test_times_have_a_suitable_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_shares_are_percentages() -> None:
    assert (percent(0.98765), percent(None)) == ("98.8 %", "-")


def test_the_report_template_is_part_of_the_package() -> None:
    import astralora.reports

    assert (Path(astralora.reports.__file__).parent / "run.html.j2").is_file()


def test_a_run_is_an_escaped_table_in_a_notebook(run: RunData) -> None:
    assert "<td" in run._repr_html_()
    summary = {**run.summary, "device": "<script>", "stopped_early": "budget & time"}
    html = RunData(summary, [], [], [], "rad")._repr_html_()
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert "budget &amp; time" in html
